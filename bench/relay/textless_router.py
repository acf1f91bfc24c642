"""Our router without detokenising, to tell its cost apart: `python -m bench.relay.textless_router`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.common import lifecycle
from services.common.settings import load_or_exit
from services.common.text import TokenTable
from services.router import front_door
from services.router.relay.text import Read
from services.router.service import RouterService
from services.router.settings import RouterSettings


class NoText:
    """Stands where the router has its TextReader."""

    def __init__(self, table: TokenTable, stops: Sequence[str], min_tokens: int = 0) -> None:
        """Takes what a TextReader takes."""

    def decode(self, token_id: int) -> str:
        """No text."""
        return ""

    def read(self, ids: Sequence[int]) -> Read:
        """All ids, no text."""
        return Read(len(ids), "", None)

    def finish(self) -> Read:
        """Nothing was held back."""
        return Read(0, "", None)


if __name__ == "__main__":
    setattr(front_door, "TextReader", NoText)  # noqa: B010
    sys.exit(lifecycle.run(RouterService, load_or_exit(RouterSettings, sys.argv[1:])))
