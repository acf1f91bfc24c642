"""`headrace workers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.cli import admin, options, output

if TYPE_CHECKING:
    from headrace.v1.admin_pb2 import WorkerStatus

TIMEOUT_S = 10.0
WHAT = ("Worker", "State", "Model", "Engine", "Device")
HOW_BUSY = ("Requests", "Last step", "KV used", "Last frame", "Labels")


def workers(
    admin_address: admin.AdminAddress = None,
    mesh_secret_file: admin.MeshSecretFile = None,
    mesh_tls: admin.MeshTls = None,
    state_dir: options.StateDir = None,
    as_json: options.Json = False,
) -> None:
    """List the workers of a router. What they serve, on what, and how busy they are."""
    from google.protobuf.json_format import MessageToDict
    from headrace.v1.admin_pb2 import ListWorkersRequest

    async def question(stub: Any, metadata: admin.Metadata) -> Any:
        return await stub.ListWorkers(ListWorkersRequest(), metadata=metadata, timeout=TIMEOUT_S)

    answer = admin.ask(admin_address, mesh_secret_file, state_dir, mesh_tls, question)
    found = sorted(answer.workers, key=lambda each: each.worker_id)
    if as_json:
        return output.json_line([MessageToDict(each, preserving_proto_field_name=True) for each in found])
    if not found:
        output.note(
            "No workers: `python -m services.worker` starts one; the logs of `headrace up` tell of its own."
        )
    output.table((*WHAT, *HOW_BUSY), map(_row, found), spare=("Last frame", "Engine", "Device", "Labels"))


def _row(worker: WorkerStatus) -> tuple[object, ...]:
    from headrace.v1.admin_pb2 import WorkerState

    state = WorkerState.Name(worker.state).removeprefix("WORKER_STATE_").lower()
    age_s = worker.last_frame_age.ToTimedelta().total_seconds()
    what = (worker.worker_id, state, worker.model, worker.engine, worker.device)
    step = f"{worker.load.step_us / 1000:.1f} ms"
    used = f"{worker.load.kv_blocks_held / max(1, worker.kv_spec.blocks):.0%}"
    labels = ", ".join(f"{key}={value}" for key, value in sorted(worker.labels.items()))
    return (*what, worker.requests, step, used, f"{age_s:.1f} s", labels)
