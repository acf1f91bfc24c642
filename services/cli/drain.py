"""`headrace drain`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli import admin, options, output

TIMEOUT_S = 10.0


def drain(
    worker: Annotated[str, typer.Argument(help="Its name, as `headrace workers` shows it.")],
    grace: Annotated[
        float | None,
        typer.Option(help="Seconds that its streams may go on; default: as set.", min=0),
    ] = None,
    admin_address: admin.AdminAddress = None,
    mesh_secret_file: admin.MeshSecretFile = None,
    mesh_tls: admin.MeshTls = None,
    state_dir: options.StateDir = None,
) -> None:
    """Give WORKER no new work and let it leave. It does when its streams have ended or moved."""
    from google.protobuf.duration_pb2 import Duration
    from headrace.v1.admin_pb2 import DrainWorkerRequest

    request = DrainWorkerRequest(worker_id=worker)
    if grace is not None:
        duration = Duration()
        duration.FromMilliseconds(int(grace * 1000))
        request.grace.CopyFrom(duration)

    async def question(stub: Any, metadata: admin.Metadata) -> Any:
        return await stub.DrainWorker(request, metadata=metadata, timeout=TIMEOUT_S)

    found = admin.ask(admin_address, mesh_secret_file, state_dir, mesh_tls, question)
    streams = "1 stream" if found.running == 1 else f"{found.running} streams"
    output.note(f"{worker} drains; it still holds {streams}")
