"""Collects what happened until somebody asks: tokens, terminal events, work done per tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows
from typing import NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from services.worker.scheduler.events import (
    NO_OUTPUTS,
    NO_TERMINALS,
    Events,
    Finished,
    KVEvents,
    OutputLogprobs,
    Outputs,
    Rejected,
    Returned,
    Served,
    Terminals,
    Timings,
    Usage,
)
from services.worker.scheduler.request import FinishReason
from services.worker.scheduler.sequence import Sequence
from services.worker.scheduler.step import Int32, Int64, Logprobs, Sampled, Step

_Kind = TypeVar("_Kind", bound=np.generic)


class _Heard(NamedTuple):
    """Sequences that got a token in one step; mostly they are those of the step before."""

    sequences: list[Sequence]
    handles: Int64
    tenants: Counter[bytes]

    @classmethod
    def of(cls, sequences: list[Sequence]) -> Self:
        """These."""
        handles = np.array([sequence.handle for sequence in sequences], np.int64)
        return cls(sequences, handles, Counter([sequence.tenant for sequence in sequences]))


class Ledger:
    """Events since the last `take`."""

    def __init__(self) -> None:
        self._heard = _Heard.of([])
        self._clear()

    @property
    def empty(self) -> bool:
        return not (self._tokens or self._finished or self._rejected or self._returned)

    @property
    def only_tokens(self) -> bool:
        """Whether there are tokens without log-probabilities, and no request began or ended."""
        ends = self._finished or self._rejected or self._returned
        return bool(self._tokens) and not (ends or self._logprobs)

    def tokens(self, step: Step, sampled: Sampled, rows: Rows[int], sequences: list[Sequence]) -> None:
        """The tokens that these rows of a step chose; `sequences` are those of all its rows."""
        if not rows:
            return
        every = len(rows) == len(sequences)
        heard = sequences if every else [sequences[row] for row in rows]
        if heard != self._heard.sequences:
            self._heard = _Heard.of(heard)
        chosen: Int64 | slice = slice(None) if every else np.array(rows)
        if sampled.logprobs is not None:
            self._logprobs.append(self._of_tokens(sampled.logprobs, np.array(rows), sequences))
        self._handles.append(self._heard.handles)
        self._indices.append(step.output_indices[chosen])
        self._tokens.append(np.array(sampled.tokens[chosen]))
        self._count += len(rows)
        for tenant, count in self._heard.tenants.items():
            self.served(tenant, 0, count)

    def _of_tokens(self, logprobs: Logprobs, rows: Int64, sequences: Rows[Sequence]) -> OutputLogprobs:
        told = np.full(len(sequences), -1, np.int32)
        told[rows] = np.arange(self._count, self._count + len(rows), dtype=np.int32)
        told = told[logprobs.rows]
        kept = np.flatnonzero(told >= 0)
        counts = np.array([sequences[row].logprobs for row in logprobs.rows[kept].tolist()], np.int32)
        chosen, ids, top = logprobs.chosen[kept], logprobs.top_ids[kept], logprobs.top[kept]
        return OutputLogprobs(told[kept], counts, chosen, ids, top)

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

    def take_tokens(self) -> Outputs:
        """The tokens alone; all else stays for `take`."""
        outputs = self._outputs()
        self._clear_tokens()
        return outputs

    def take(self, kv: KVEvents) -> Events:
        """Everything since the last call, with the block pool's changes."""
        served = {tenant: Served(*counts) for tenant, counts in self._served.items()}
        events = Events(self._outputs(), self._terminals(), kv, served)
        self._clear()
        return events

    def _terminals(self) -> Terminals:
        if not (self._finished or self._rejected or self._returned):
            return NO_TERMINALS
        return Terminals(tuple(self._finished), tuple(self._rejected), tuple(self._returned))

    def _outputs(self) -> Outputs:
        if not self._tokens:
            return NO_OUTPUTS
        return Outputs(
            _joined(self._handles),
            _joined(self._indices).astype(np.int32),
            _joined(self._tokens),
            tuple(self._logprobs),
        )

    def _clear_tokens(self) -> None:
        self._handles: list[Int64] = []  # of tokens, by step; the next two likewise
        self._indices: list[Int64] = []
        self._tokens: list[Int32] = []
        self._logprobs: list[OutputLogprobs] = []
        self._count = 0  # tokens of all steps

    def _clear(self) -> None:
        self._clear_tokens()
        self._finished: list[Finished] = []
        self._rejected: list[Rejected] = []
        self._returned: list[Returned] = []
        self._served: dict[bytes, tuple[int, int]] = {}


def _joined(parts: list[npt.NDArray[_Kind]]) -> npt.NDArray[_Kind]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _timings(sequence: Sequence, now: float) -> Timings:
    started = now if sequence.first_step_s is None else sequence.first_step_s
    answered = now if sequence.first_token_s is None else sequence.first_token_s
    return Timings(started - sequence.request.arrival_s, answered - started, now - answered)
