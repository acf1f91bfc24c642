"""Collects what happened until somebody asks: tokens, terminal events, work done per tenant."""

from __future__ import annotations

import numpy as np

from services.worker.scheduler.events import (
    NO_OUTPUTS,
    Events,
    Finished,
    KVEvents,
    Outputs,
    Rejected,
    Returned,
    Served,
    Terminals,
    Timings,
    TokenLogprobs,
    Usage,
)
from services.worker.scheduler.request import FinishReason
from services.worker.scheduler.sequence import Sequence


class Ledger:
    """Events since the last `take`."""

    def __init__(self) -> None:
        self._clear()

    @property
    def empty(self) -> bool:
        return not (self._handles or self._finished or self._rejected or self._returned)

    def token(self, sequence: Sequence, token: int) -> None:
        """The next output token, before it is counted in `sequence.outputs`."""
        self._handles.append(sequence.handle)
        self._indices.append(sequence.outputs)
        self._tokens.append(token)

    def logprobs_of_last_token(self, logprobs: TokenLogprobs) -> None:
        """The token recorded last had these."""
        self._logprobs[len(self._tokens) - 1] = (logprobs,)

    def served(self, tenant: bytes, prompt_tokens: int, output_tokens: int) -> None:
        """Work done for a tenant."""
        before = self._served.get(tenant, (0, 0))
        self._served[tenant] = (before[0] + prompt_tokens, before[1] + output_tokens)

    def finished(
        self, sequence: Sequence, reason: FinishReason, now: float, stop_token_id: int | None, message: str
    ) -> None:
        """The sequence's one terminal event."""
        usage = Usage(
            sequence.prompt_len,
            sequence.cached_tokens or 0,
            sequence.outputs,
            sequence.preemptions,
            sequence.recomputed,
        )
        timings = _timings(sequence, now)
        self._finished.append(Finished(sequence.handle, reason, usage, timings, stop_token_id, message))

    def rejected(self, rejected: Rejected) -> None:
        self._rejected.append(rejected)

    def returned(self, sequence: Sequence) -> None:
        self._returned.append(Returned(sequence.handle, sequence.outputs))

    def take(self, kv: KVEvents) -> Events:
        """Everything since the last call, with the block pool's changes."""
        terminals = Terminals(tuple(self._finished), tuple(self._rejected), tuple(self._returned))
        served = {tenant: Served(*counts) for tenant, counts in self._served.items()}
        events = Events(self._outputs(), terminals, kv, served)
        self._clear()
        return events

    def _outputs(self) -> Outputs:
        if not self._handles:
            return NO_OUTPUTS
        return Outputs(
            np.array(self._handles, np.int64),
            np.array(self._indices, np.int32),
            np.arange(len(self._tokens) + 1, dtype=np.int32),
            np.array(self._tokens, np.int32),
            self._logprobs,
        )

    def _clear(self) -> None:
        self._handles: list[int] = []
        self._indices: list[int] = []
        self._tokens: list[int] = []
        self._logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        self._finished: list[Finished] = []
        self._rejected: list[Rejected] = []
        self._returned: list[Returned] = []
        self._served: dict[bytes, tuple[int, int]] = {}


def _timings(sequence: Sequence, now: float) -> Timings:
    started = now if sequence.first_step_s is None else sequence.first_step_s
    answered = now if sequence.first_token_s is None else sequence.first_token_s
    return Timings(started - sequence.request.arrival_s, answered - started, now - answered)
