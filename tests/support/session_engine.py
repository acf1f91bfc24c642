"""An engine for tests of the session half that computes nothing: it says what a test says."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from services.worker.engine.base import EngineDescription
from services.worker.engine.report import Progress, StepReport
from services.worker.scheduler.budget import PRIOR
from services.worker.scheduler.events import (
    NO_KV_EVENTS,
    Credits,
    Finished,
    KVEvents,
    Load,
    OutputLogprobs,
    Outputs,
    Rejected,
    Returned,
    Room,
    Served,
    Terminals,
    Timings,
    TokenLogprobs,
    Usage,
)
from services.worker.scheduler.request import FinishReason, Merge, Request
from services.worker.scheduler.step import Capabilities, KVSpec
from tests.support.engines import describe

SPEC = KVSpec(block_size=64, num_blocks=64, max_seqs=16, max_len=1024)
DESCRIPTION = describe(SPEC, Capabilities())
ENDLESS = Credits(
    prefill_tokens=10**6, slots=1000, blocks=10**6, waiting_by_session={}, foreground=Room(10**6, 1000, 10**6)
)


class RecordingEngine:
    """Implements the desk's `Engine`."""

    def __init__(self, description: EngineDescription = DESCRIPTION) -> None:
        self.description = description
        self.requests: dict[int, Request] = {}
        self.aborted: list[int] = []
        self.merged: dict[int, Merge | None] = {}
        self.drained = False
        self.number = 0
        self.made: dict[int, int] = {}
        self._steps = 0

    def submit(self, request: Request) -> int:
        assert request.handle not in self.requests, "a handle was used twice"
        assert len(request.prompt) > 0
        self.requests[request.handle] = request
        self.made[request.handle] = len(request.delivered)
        self.number += 1
        return self.number

    def abort(self, handle: int) -> int:
        self.aborted.append(handle)
        self.number += 1
        return self.number

    def merge(self, handle: int, merge: Merge | None) -> int:
        self.merged[handle] = merge
        self.number += 1
        return self.number

    def drain(self) -> int:
        self.drained = True
        self.number += 1
        return self.number

    def handle(self, request_index: int = -1) -> int:
        """The handle of a submitted request, the last by default."""
        return list(self.requests)[request_index]

    def report(
        self,
        tokens: dict[int, Sequence[int]] | None = None,
        *,
        finished: Iterable[Finished] = (),
        rejected: Iterable[Rejected] = (),
        returned: Iterable[Returned] = (),
        logprobs: dict[int, tuple[TokenLogprobs, ...]] | None = None,
        credits: Credits = ENDLESS,
        last_command: int | None = None,
        kv: KVEvents = NO_KV_EVENTS,
        served: dict[bytes, Served] | None = None,
        running: int = 0,
    ) -> StepReport:
        """A report of one step with these news."""
        self._steps += 1
        return StepReport(
            last_command=self.number if last_command is None else last_command,
            load=Load(running, 0, 0, 64, 0, 0, 64),
            credits=credits,
            progress=Progress(self._steps, bool(running), time.monotonic(), 1, 1, 0.001),
            step_model=PRIOR,
            outputs=self._outputs(tokens or {}, logprobs or {}),
            terminals=Terminals(tuple(finished), tuple(rejected), tuple(returned)),
            kv=kv,
            served=served or {},
        )

    def _outputs(
        self, tokens: dict[int, Sequence[int]], logprobs: dict[int, tuple[TokenLogprobs, ...]]
    ) -> Outputs:
        rows: list[tuple[int, int, int]] = []
        described: list[OutputLogprobs] = []
        for handle, ids in tokens.items():
            described += _logprobs(len(rows), logprobs.get(handle, ()))
            rows += [(handle, index, token) for index, token in enumerate(ids, self.made[handle])]
            self.made[handle] += len(ids)
        handles, indices, flat = np.array(rows, np.int64).reshape(-1, 3).T
        return Outputs(handles, indices.astype(np.int32), flat.astype(np.int32), tuple(described))


def _logprobs(first_row: int, values: tuple[TokenLogprobs, ...]) -> Iterator[OutputLogprobs]:
    """Of tokens from a row on."""
    for row, value in enumerate(values, first_row):
        yield OutputLogprobs(
            np.array([row], np.int32),
            np.array([len(value.top_ids)], np.int32),
            np.array([value.chosen], np.float32),
            np.array([value.top_ids], np.int32),
            np.array([value.top], np.float32),
        )


def finish(
    handle: int, reason: FinishReason = FinishReason.LENGTH, queue_s: float = 0.001, **more: object
) -> Finished:
    """The end of a request."""
    usage, timings = Usage(3, 0, 1, 0, 0), Timings(queue_s, 0.002, 0.003)
    return Finished(handle, reason, usage, timings, **more)  # type: ignore[arg-type]


def kv(first: int, *, stored: bool = True, count: int = 1) -> KVEvents:
    """Events of `count` blocks that are unlike all others."""
    digests = tuple((first + each).to_bytes(16, "big") * 2 for each in range(count))
    return KVEvents(first, np.full(count, stored), digests)
