"""Talking to a router's AdminService as a member of the mesh."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from services.cli import options
from services.cli.errors import CliError, UsageError
from services.cli.state import locate, read_running

if TYPE_CHECKING:
    from headrace.v1.admin_pb2_grpc import AdminServiceAsyncStub

Reply = TypeVar("Reply")
AdminAddress = Annotated[
    str | None,
    typer.Option(
        "--admin-address",
        envvar="HEADRACE_ADMIN_ADDRESS",
        help="Internal address of a router; default: that of the mesh of the state directory.",
    ),
]
MeshSecretFile = Annotated[
    Path | None,
    typer.Option(envvar="HEADRACE_MESH_SECRET_FILE", help="Default: mesh.secret in the state directory."),
]
MeshTls = Annotated[
    tuple[Path, Path, Path] | None,
    typer.Option("--mesh-tls", metavar="AUTHORITY CERTIFICATE KEY", help="PEM files, with mutual TLS."),
]
Metadata = tuple[tuple[str, str], ...]


def ask(
    address: str | None,
    secret_file: Path | None,
    state_dir: Path | None,
    tls: tuple[Path, Path, Path] | None,
    question: Callable[[AdminServiceAsyncStub, Metadata], Awaitable[Reply]],
) -> Reply:
    """Asks the router and returns what it says. Raises CliError and HeadraceError."""
    from services.common.members import MeshSecret

    state = locate(state_dir)
    running = read_running(state)
    target = address or (running.admin_address if running else None)
    if target is None:
        raise UsageError(
            f"no mesh runs from {state.path}: `headrace up` starts one, --admin-address names another"
        )
    options.checked(target, "--admin-address")
    try:
        secret = MeshSecret.read(secret_file or state.mesh_secret)
    except (OSError, ValueError) as error:
        raise CliError(f"cannot use the mesh secret: {error}") from None
    reply: Reply = asyncio.run(_ask(target, secret.metadata("admin"), tls, question))
    return reply


async def _ask(target: str, metadata: Metadata, tls: Any, question: Callable[[Any, Metadata], Any]) -> Any:
    import grpc
    from headrace.errors import from_rpc
    from headrace.v1.admin_pb2_grpc import AdminServiceStub

    from services.common.transport import Tls, channel

    files = dict(zip(("authority", "certificate", "key"), tls, strict=True)) if tls else {}
    async with channel(target, Tls(**files)) as connection:
        try:
            return await question(AdminServiceStub(connection), metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise CliError(f"{target} is no mesh port of a router: --admin-address takes one") from None
            raise from_rpc(error) from None
