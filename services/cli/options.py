"""Options that several commands share, and the connection that they describe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.patience import NO_WORKER_S, Patience

if TYPE_CHECKING:
    from headrace.client import Headrace, Tls

DEFAULT_ADDRESS = "127.0.0.1:50051"

Address = Annotated[
    str,
    typer.Option(
        envvar="HEADRACE_ADDRESS", help="Public address of the mesh, host:port; several with commas."
    ),
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="HEADRACE_API_KEY", help="API key hr_…; not needed without tenants.")
]
UseTls = Annotated[bool, typer.Option("--tls", help="Encrypt; trusts the system's authorities.")]
Authority = Annotated[
    Path | None, typer.Option("--tls-authority", help="Encrypt; PEM authority to trust.", dir_okay=False)
]
Model = Annotated[str | None, typer.Option(help="Which model; default: the only one served.")]
MaxTokens = Annotated[
    int | None, typer.Option(help="Most tokens of one answer; unset: 256.", min=1, max=(1 << 32) - 1)
]
TimeoutS = Annotated[float | None, typer.Option("--timeout", help="Seconds for the whole call.", min=0.001)]
StateDir = Annotated[
    Path | None,
    typer.Option(envvar="HEADRACE_STATE_DIR", help="Where secrets, keys and logs are kept."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def tls(use: bool, authority: Path | None) -> Tls | None:
    """The TLS that the options describe; None for plain text. Raises UsageError for a missing file."""
    from headrace.client import Tls

    from services.cli.errors import UsageError

    if authority is not None and not authority.is_file():
        raise UsageError(f"--tls-authority: no file {authority}")
    return Tls(authority=authority) if use or authority else None


def checked(address: str, option: str = "--address") -> str:
    """The address as it is. Raises UsageError for one that is none."""
    from headrace.addresses import addresses_in

    from services.cli.errors import UsageError

    try:
        addresses_in(address)
    except ValueError as error:
        scheme = "; leave the scheme away" if re.search(r"https?://|grpcs?://", address) else ""
        raise UsageError(f"{option}{str(error).removeprefix('address')}{scheme}") from None
    return address


def connect(
    address: str,
    api_key: str | None,
    use_tls: bool,
    authority: Path | None,
    no_worker_s: float | None = NO_WORKER_S,
) -> Headrace:
    """A client of the mesh that says when it waits, and gives up where no worker comes in that time."""
    from headrace.client import Headrace

    patience = Patience(no_worker_s)
    return Headrace(checked(address), api_key=api_key, tls=tls(use_tls, authority), on_wait=patience)
