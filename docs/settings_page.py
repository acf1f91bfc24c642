"""Writes docs/settings.md from the settings classes of all services: `make docs`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from services.common.settings import ServiceSettings, variable

PAGE = Path(__file__).with_name("settings.md")
SERVICES = ("router", "tokenizer", "worker", "cache")
HEAD = """# Settings

Written by `make docs` from the settings classes; nothing here is written by hand.

Later beats earlier: default, section `[mesh]` of the TOML file, section of the service, `HEADRACE_<NAME>`,
`HEADRACE_<SERVICE>_<NAME>`, `--flag` of `python -m services.<service>`. The file is named by
`HEADRACE_CONFIG` or `--config`. A setting with a dot is one of a group: a table of the TOML file
(`[router.standard]`), JSON in the group's variable (`HEADRACE_ROUTER_STANDARD='{"ttft_s": 10}'`), or
`--standard.ttft-s=10`; the rest of the group stays as it is. A wrong value ends the process with exit code 2
and one line that names the setting.
"""


def settings_classes() -> dict[str, type[ServiceSettings]]:
    """The settings class of each service, from its `settings.py`."""
    return {name: _of(name) for name in SERVICES}


def page() -> str:
    """The whole page."""
    sections = [_section("Every service", ServiceSettings, inherited=False)]
    sections += [
        _section(name.capitalize(), kind, inherited=True) for name, kind in settings_classes().items()
    ]
    return "\n".join([HEAD, *sections])


def _of(service: str) -> type[ServiceSettings]:
    module = import_module(f"services.{service}.settings")
    return next(
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, ServiceSettings) and kind.service == service
    )


def _section(title: str, kind: type[ServiceSettings], *, inherited: bool) -> str:
    lines = [f"## {title}", "", "| setting | default | what |", "|---|---|---|"]
    for name, field in kind.model_fields.items():
        if not inherited or _own(name, field):
            label = variable(kind, name) if inherited else f"HEADRACE_{name.upper()}"
            lines.extend(_rows(label, kind, name))
    return "\n".join([*lines, ""])


def _own(name: str, field: FieldInfo) -> bool:
    """Whether a service brings a setting itself, or changes the default of one that all have."""
    common = ServiceSettings.model_fields.get(name)
    return common is None or common.default != field.default


def _rows(label: str, kind: type[BaseModel], name: str) -> Iterator[str]:
    field = kind.model_fields[name]
    group = field.annotation
    if not (isinstance(group, type) and issubclass(group, BaseModel)):
        yield _row(label, kind, name)
        return
    yield f"| `{label}` | | {(group.__doc__ or '').strip()} |"
    yield from (_row(f"{name}.{member}", group, member) for member in group.model_fields)


def _row(label: str, kind: type[BaseModel], name: str) -> str:
    field = kind.model_fields[name]
    words = [word for word in get_args(field.annotation) if isinstance(word, str)]
    choices = f" ({', '.join(words)})" if words else ""
    return f"| `{label}` | {_default(field)} | {described(kind, name)}{choices} |"


def described(kind: type[BaseModel], name: str) -> str:
    """What a setting says about itself; one that only changes a default says what its parent says."""
    parents = (parent.model_fields.get(name) for parent in kind.__mro__ if issubclass(parent, BaseModel))
    found = next((field.description for field in parents if field and field.description), "")
    return found.replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "by the machine"
    if field.default is PydanticUndefined:
        return "must be set"
    return "" if field.default is None or field.default == () else f"`{_plain(field.default)}`"


def _plain(value: Any) -> str:
    if isinstance(value, Path):
        return str(value).replace(tempfile.gettempdir(), "$TMPDIR")
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page())
