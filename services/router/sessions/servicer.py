"""SessionService: one call is one worker's session, from its Hello to its end."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import TypeVar

from headrace.v1 import session_pb2

from services.common import errors, logs
from services.common.lifecycle import Tasks
from services.common.members import MeshSecret
from services.common.metrics import from_zero
from services.common.replies import Replies
from services.common.rpc import Context, note_stranger
from services.router.dispatcher import Dispatcher
from services.router.metrics import RouterMetrics
from services.router.models import ModelBook
from services.router.sessions.handshake import MAX_NAME, Handshake, check_digests
from services.router.sessions.pen import Pen
from services.router.sessions.session import Session as WorkerSession
from services.router.sessions.times import SessionTimes

HANDSHAKE_FRAMES = 2
METHOD = "SessionService.Session"
Frames = AsyncIterator[session_pb2.WorkerFrame]
Result = TypeVar("Result")
log = logs.get(__name__)


class SessionServicer:
    """Lets workers in and carries frames both ways."""

    def __init__(
        self,
        mesh: MeshSecret,
        models: ModelBook,
        dispatcher: Dispatcher,
        tasks: Tasks,
        times: SessionTimes,
        metrics: RouterMetrics,
    ) -> None:
        self.router_id = ""
        self.siblings: tuple[str, ...] = ()
        self._mesh = mesh
        self._models = models
        self._dispatcher = dispatcher
        self._tasks = tasks
        self._times = times
        self._metrics = metrics
        from_zero(metrics.rpc.strangers, (METHOD,))

    async def Session(self, frames: Frames, context: Context, replies: Replies) -> None:
        """One session; ends when the worker ends it, leaves, or falls silent."""
        handshake = Handshake(self._mesh)
        try:
            replies.begin(handshake.challenge(await self._soon(anext(frames))))
            hello = handshake.admit(await self._soon(anext(frames)))
            await self._check_model(hello)
            self._check_name(hello)
        except errors.Unauthenticated:
            note_stranger(self._metrics.rpc, METHOD, context)
            raise
        except errors.FailedPrecondition as error:
            self._report_refusal(handshake.hello.worker_id, error)
            raise
        await replies.finish()
        await self._carry(self._open(hello), frames, replies)

    async def _carry(self, session: WorkerSession, frames: Frames, replies: Replies) -> None:
        self._dispatcher.join(session)
        reader = self._tasks.spawn(_read(session, frames), f"session {session.worker_id}")
        try:
            replies.begin(self._welcome(session))
            await Pen(session, replies).write()
        finally:
            reader.cancel()
            session.close()
            self._dispatcher.part(session)
        if session.close_error is not None:
            raise session.close_error

    def _report_refusal(self, worker_id: str, error: errors.FailedPrecondition) -> None:
        """A member that cannot be served dials again and again; that is said once a minute."""
        name = worker_id[:MAX_NAME]
        if self._metrics.rpc.seldom.due(f"refused {name} {error.reason}", time.monotonic()):
            log.warning("worker_refused", worker=name, reason=error.reason, why=error.message)

    async def _soon(self, frame: asyncio.Future[Result] | object) -> session_pb2.WorkerFrame:
        """A frame of the handshake; who dawdles is a stranger."""
        try:
            return await asyncio.wait_for(frame, self._times.handshake_s)  # type: ignore[arg-type]
        except (TimeoutError, StopAsyncIteration):
            raise errors.Unauthenticated("no handshake", reason="NOT_A_MEMBER") from None

    async def _check_model(self, hello: session_pb2.Hello) -> None:
        """Compares digests with the tokenizer service's; a copy that differs may be old and is read again."""
        try:
            check_digests(hello, (await self._models.find(hello.model)).digests)
        except errors.FailedPrecondition:
            check_digests(hello, (await self._models.refresh(hello.model)).digests)
        except errors.NotFound:
            raise errors.FailedPrecondition(
                f"no tokenizer service knows the model {hello.model!r}", reason="MODEL_UNKNOWN"
            ) from None

    def _check_name(self, hello: session_pb2.Hello) -> None:
        """A process that another of its name has replaced stays out while that one is there.

        Else two of one name would take each other's place, and requests, again and again.
        """
        there = self._dispatcher.workers.get(hello.worker_id)
        if there is not None and hello.incarnation in there.displaced:
            raise errors.FailedPrecondition(
                f"another process is the worker {hello.worker_id!r} now: each needs a worker_id of its own",
                reason="WORKER_ID_IN_USE",
            )

    def _open(self, hello: session_pb2.Hello) -> WorkerSession:
        return WorkerSession(
            hello,
            secrets.token_hex(8),
            self._times,
            self._dispatcher,
            self._metrics,
            frames_received=HANDSHAKE_FRAMES,
            frames_sent=HANDSHAKE_FRAMES,
            now=time.monotonic(),
        )

    def _welcome(self, session: WorkerSession) -> session_pb2.RouterFrame:
        return session_pb2.RouterFrame(
            number=HANDSHAKE_FRAMES,
            acknowledged_frame=HANDSHAKE_FRAMES,
            welcome=session_pb2.Welcome(
                router_id=self.router_id,
                session_id=session.session_id,
                siblings=self.siblings,
                heartbeat_ms=int(self._times.heartbeat_s * 1000),
                resume_grace_ms=max(1, int(self._times.resume_grace_s * 1000)),  # 0 would be the default
                orphan_hold_ms=max(1, int(self._times.orphan_hold_s * 1000)),
                resume=session.resumed,
                next_tokens=True,
                token_counts=True,
            ),
        )


async def _read(session: WorkerSession, frames: Frames) -> None:
    """Hands frames to the session until either ends; whatever goes wrong ends this session alone."""
    try:
        async for frame in frames:
            session.handle(frame, time.monotonic())
        session.close()
    except errors.InvalidArgument as error:
        session.unreadable(error)
    except errors.HeadraceError as error:
        session.close(error)
    except Exception as error:
        log.error("session_failed", worker=session.worker_id, exc_info=error)
        session.close(errors.Internal("the session failed"))
    finally:
        session.close()
