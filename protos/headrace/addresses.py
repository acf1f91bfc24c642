"""Where a mesh is called. What is no address gRPC takes for another: port 70000 for 4464, no port for 443."""

from __future__ import annotations

import re

_HOST_PORT = re.compile(r"(?:dns:///)?(?:\[[\w:.%]+\]|[\w.-]+):(\d{1,5})", re.ASCII)


def addresses_in(text: str) -> list[str]:
    """The addresses of a list with commas, at least one. Raises ValueError for what is none."""
    found = [each.strip() for each in text.split(",") if each.strip()] or [text]
    for each in found:
        if not _is_address(each):
            raise ValueError(f"address {each!r}: write host:port, with a port of 1 to 65535, or unix:path")
    return found


def _is_address(text: str) -> bool:
    found = _HOST_PORT.fullmatch(text)
    return bool(re.fullmatch("unix:.+", text) or (found and 1 <= int(found[1]) <= 65535))
