"""`headrace init`: everything secret that a deployment needs, written once; run it again and nothing changes.

STATE    master.secret, keys.toml, salts/             for routers alone
MESH     mesh.secret                                  for all members; default: STATE
TLS      authority.pem, mesh.pem, mesh.key            for all members
VALKEY   valkey.password                              for Valkey and the cache service; default: STATE
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.errors import CliError, UsageError

SECRET_BYTES = 32
PASSWORD_BYTES = 24
DEFAULT_NAMES = ("router", "tokenizer", "cache", "worker", "localhost", "127.0.0.1", "::1")


def init(
    state: Annotated[Path, typer.Option(help="Directory for secrets and keys.", file_okay=False)],
    tls: Annotated[
        Path | None,
        typer.Option(help="Directory for the mesh's own authority and certificate.", file_okay=False),
    ] = None,
    mesh: Annotated[
        Path | None, typer.Option(help="Directory for the mesh secret; default: STATE.", file_okay=False)
    ] = None,
    valkey: Annotated[
        Path | None, typer.Option(help="Directory for Valkey's password; default: STATE.", file_okay=False)
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose first API key is made.")] = "default",
    name: Annotated[
        list[str] | None,
        typer.Option(help="Host name or address in the certificate, beside the usual ones; repeatable."),
    ] = None,
) -> None:
    """Write a deployment's secrets where they are missing.

    With them come a first API key, which is printed once, and certificates.
    """
    try:
        _secrets(state, mesh or state, valkey or state)
        _certificates(tls, (*DEFAULT_NAMES, *(name or ())))
        _first_key(state / "keys.toml", tenant)
    except OSError as error:
        raise CliError(f"cannot write {error.filename}: {error.strerror}") from None


def _secrets(state: Path, mesh: Path, valkey: Path) -> None:
    from services.common.members import write_new_secret

    for directory in (state, state / "salts", mesh, valkey):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    secrets = {
        state / "master.secret": SECRET_BYTES,
        mesh / "mesh.secret": SECRET_BYTES,
        valkey / "valkey.password": PASSWORD_BYTES,
    }
    for path, size in secrets.items():
        existed = path.exists()
        write_new_secret(path, size)
        _say(existed, path)


def _certificates(directory: Path | None, names: tuple[str, ...]) -> None:
    from services.cli.certificates import write_mesh_certificates

    if directory is None:
        return
    existed = not write_mesh_certificates(directory, names)
    _say(existed, directory / "mesh.pem")


def _first_key(keys_file: Path, tenant: str) -> None:
    from services.common.identity import create_key, load

    try:
        if load(keys_file, None).keys:
            return _say(True, keys_file)
        key = create_key(keys_file, tenant)
    except ValueError as error:
        raise UsageError(str(error)) from None
    _say(False, keys_file)
    print(f"API key of tenant {tenant}, shown only now:\n{key}", flush=True)


def _say(existed: bool, path: Path) -> None:
    print(f"{'kept' if existed else 'made'} {path}", flush=True)
