"""Sends one request and times what comes back. The hot path: it must cost little beside grpc itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc
from headrace.answer import rest_of
from headrace.errors import HeadraceError, from_rpc
from headrace.recovery import STOPS, Ask, Recovery, Step
from headrace.v1 import router_pb2, types_pb2

from services.cli.bench.record import Record
from services.cli.bench.workload import Job

if TYPE_CHECKING:
    from headrace.v1.router_pb2_grpc import RouterServiceAsyncStub

Metadata = tuple[tuple[str, str], ...]
clock = time.monotonic


class Caller:
    """Sends requests over some connections in turn.

    Args:
        unary: GenerateUnary instead of Generate; the time to the first token is then the server's word.
        retries: how often a refusal that says when to retry is retried, at most; what breaks is taken up.
    """

    def __init__(
        self,
        stubs: Sequence[RouterServiceAsyncStub],
        *,
        unary: bool,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        retries: int = 0,
    ) -> None:
        self._stubs = stubs
        self._once = self._unary if unary else self._stream
        self._metadata = metadata
        self._timeout_s = timeout_s
        self._retries = retries

    async def run(self, job: Job, intended_s: float) -> Record:
        """Sends the job and returns what became of it; only cancelling it raises."""
        record = Record(job.number, job.latency_class, intended_s, sent_s=clock())
        asked, recovery, had = job.request, Recovery(), 0
        recovery.asked(clock())
        while (error := await self._attempt(asked, record)) is not None:
            if record.output_tokens > had:
                had = record.output_tokens
                recovery.arrived()
            step = self._next(error, record, recovery)
            if step is None:
                record.status, record.reason, record.why = error.code.name, error.reason, str(error)
                break
            asked = job.request if step.ask is Ask.AGAIN else _rest(job.request, record)
            await asyncio.sleep(step.pause_s)
            recovery.asked(clock())
        record.end_s = clock()
        return record

    def _next(self, error: HeadraceError, record: Record, recovery: Recovery) -> Step | None:
        """What follows a failure; None: it counts. What broke is taken up, as every client does."""
        refused = error.retry_s is not None and error.reason != STOPS and not recovery.broken
        if refused and record.first_s is None:
            if record.retries >= self._retries:
                return None
            record.retries += 1
            return Step(Ask.AGAIN, error.retry_s or 0.0, elsewhere=False)
        try:
            step = recovery.step(error, record.output_tokens, clock())
        except HeadraceError:
            return None
        record.resumes += step.ask is Ask.REST
        return step if step.ask is Ask.REST or not record.output_tokens else None

    async def _attempt(self, asked: router_pb2.GenerateRequest, record: Record) -> HeadraceError | None:
        stub = self._stubs[(record.number + record.resumes) % len(self._stubs)]
        try:
            finished = await self._once(stub, asked, record)
        except grpc.aio.AioRpcError as error:
            return from_rpc(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return HeadraceError("the mesh cancelled the call", code=grpc.StatusCode.CANCELLED)
        if finished is None:
            return HeadraceError("no end", code=grpc.StatusCode.DATA_LOSS, reason="NO_FINISHED")
        _keep(record, finished)
        return None

    async def _stream(
        self, stub: RouterServiceAsyncStub, asked: router_pb2.GenerateRequest, record: Record
    ) -> router_pb2.Finished | None:
        call = stub.Generate(asked, timeout=self._timeout_s, metadata=self._metadata)
        try:
            async for response in call:
                record.messages += 1
                if response.HasField("finished"):
                    return response.finished
                if tokens := len(response.delta.token_ids):
                    record.arrived(clock(), tokens)
            return None
        finally:
            call.cancel()

    async def _unary(
        self, stub: RouterServiceAsyncStub, asked: router_pb2.GenerateRequest, record: Record
    ) -> router_pb2.Finished:
        call = stub.GenerateUnary(asked, timeout=self._timeout_s, metadata=self._metadata)
        try:
            finished = await call
        finally:
            call.cancel()
        now_s = clock()
        after_first_s = (finished.timings.total_us - finished.timings.first_token_us) / 1e6
        record.messages += 1
        record.first_s, record.first_tokens = max(record.sent_s, now_s - after_first_s), 1
        record.last_s, record.output_tokens = now_s, finished.usage.output_tokens
        return finished


def _rest(request: router_pb2.GenerateRequest, record: Record) -> router_pb2.GenerateRequest:
    resume = router_pb2.Resume(request_id=request.request_id, next_index=record.output_tokens)
    return rest_of(request, resume)


def _keep(record: Record, finished: router_pb2.Finished) -> None:
    record.prompt_tokens = finished.usage.prompt_tokens
    record.cached_tokens = finished.usage.cached_tokens
    record.cached_response = finished.cached_response
    if not record.latency_class and finished.latency_class:
        name = types_pb2.LatencyClass.Name(finished.latency_class)
        record.latency_class = name.removeprefix("LATENCY_CLASS_").lower()
