"""AdminService: what an operator sees of this router process's workers, and draining one."""

from __future__ import annotations

import time

from google.protobuf import duration_pb2
from headrace.v1 import admin_pb2

from services.common.errors import FieldViolation, InvalidArgument, NotFound
from services.common.rpc import Context
from services.router.sessions.session import Session
from services.router.sessions.workers import Workers

MAX_GRACE_S = 86_400


class AdminServicer:
    """Serves `headrace.v1.AdminService`; members only."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    async def ListWorkers(
        self, _: admin_pb2.ListWorkersRequest, __: Context
    ) -> admin_pb2.ListWorkersResponse:
        """The workers whose sessions this router holds."""
        now = time.monotonic()
        return admin_pb2.ListWorkersResponse(workers=[_status(each, now) for each in self._workers])

    async def DrainWorker(
        self, request: admin_pb2.DrainWorkerRequest, _: Context
    ) -> admin_pb2.DrainWorkerResponse:
        """Gives a worker no new work and asks it to leave."""
        session = self._workers.get(request.worker_id)
        if session is None:
            message = f"no worker {request.worker_id!r} has a session here"
            raise NotFound(message, kind="worker", name=request.worker_id)
        running = len(session.flights())
        session.drain(_grace_ms(request))
        return admin_pb2.DrainWorkerResponse(running=running)


def _grace_ms(request: admin_pb2.DrainWorkerRequest) -> int:
    """0 leaves it to the worker's own setting."""
    if not request.HasField("grace"):
        return 0
    seconds = request.grace.seconds + request.grace.nanos / 1e9
    if not 0 <= seconds <= MAX_GRACE_S:
        raise InvalidArgument(FieldViolation("grace", f"must be in [0, {MAX_GRACE_S}] s"))
    return max(1, int(seconds * 1000))


def _status(session: Session, now: float) -> admin_pb2.WorkerStatus:
    age = duration_pb2.Duration()
    age.FromMilliseconds(int((now - session.last_frame_s) * 1000))
    hello = session.hello
    return admin_pb2.WorkerStatus(
        worker_id=session.worker_id,
        incarnation=hello.incarnation,
        model=session.model,
        engine=hello.engine,
        device=hello.device,
        state=session.state(now),
        load=session.account.load,
        credit=session.account.credit,
        requests=len(session.flights()),
        last_frame_age=age,
        labels=dict(hello.labels),
        kv_spec=hello.kv_spec,
    )
