"""`headrace keys`: API keys of tenants. Only digests are stored; a key is seen once, when it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli import options, output
from services.cli.errors import CliError, UsageError
from services.cli.state import locate

app = typer.Typer(help="API keys of tenants.", no_args_is_help=True)
KeysFile = Annotated[
    Path | None,
    typer.Option(
        "--keys-file", envvar="HEADRACE_ROUTER_KEYS_FILE", help="Default: that of the state directory."
    ),
]


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Who the key is for.")],
    keys_file: KeysFile = None,
    state_dir: options.StateDir = None,
) -> None:
    """Make a key for TENANT and print it: it cannot be shown again."""
    from services.common.identity import create_key, load

    file = _file(keys_file, state_dir)
    try:
        first = not load(file, None).keys
        print(create_key(file, tenant), flush=True)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if first:
        output.note(
            f"The first key in {file}: from now on every call to a mesh that reads it needs one "
            "(--api-key, HEADRACE_API_KEY)."
        )


@app.command("list")
def list_keys(
    keys_file: KeysFile = None, state_dir: options.StateDir = None, as_json: options.Json = False
) -> None:
    """List the keys: their ids, never the keys themselves."""
    from services.common.identity import load

    file = _file(keys_file, state_dir)
    try:
        directory = load(file, None)
    except ValueError as error:
        raise CliError(str(error)) from None
    rows = [(key.id, key.tenant, key.created) for key in directory.keys.values()]
    if as_json:
        return output.json_line([dict(zip(("id", "tenant", "created"), row, strict=True)) for row in rows])
    output.table(("Id", "Tenant", "Created"), rows)
    if not rows:
        who = "nobody is let in" if directory.guarded else "everybody on this machine is let in"
        output.note(f"No keys in {file}: {who}. `headrace keys create TENANT` makes one.")


@app.command()
def revoke(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The id: the part after hr_.")],
    keys_file: KeysFile = None,
    state_dir: options.StateDir = None,
) -> None:
    """Make the key with this id worthless at once."""
    from services.common.identity import revoke_key

    file = _file(keys_file, state_dir)
    if not file.exists() or not revoke_key(file, identifier):
        raise CliError(f"no key {identifier} in {file}")
    output.note(f"revoked {identifier}")


def _file(given: Path | None, state_dir: Path | None) -> Path:
    return given or locate(state_dir).keys
