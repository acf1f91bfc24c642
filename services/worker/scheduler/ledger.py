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
from services.worker.scheduler.kept import KeptTokens, Told
from services.worker.scheduler.request import FinishReason, Merge
from services.worker.scheduler.sequence import Sequence
from services.worker.scheduler.step import Int32, Int64, Logprobs, Sampled, Step

_Kind = TypeVar("_Kind", bound=np.generic)


class _Part(NamedTuple):
    """Those of them whose tokens go together: their places, handles, and how many each tenant has."""

    merge: Merge | None
    places: Int64 | slice
    handles: Int64
    tenants: Counter[bytes]

    @classmethod
    def of(cls, merge: Merge | None, places: Int64 | slice, sequences: list[Sequence]) -> Self:
        """These."""
        handles = np.array([sequence.handle for sequence in sequences], np.int64)
        return cls(merge, places, handles, Counter([sequence.tenant for sequence in sequences]))


class _Heard(NamedTuple):
    """Sequences that got a token in one step; mostly they are those of the step before."""

    sequences: list[Sequence]
    parts: list[_Part]

    @classmethod
    def of(cls, sequences: list[Sequence]) -> Self:
        """These."""
        merges = [sequence.merge for sequence in sequences]
        if merges and merges.count(merges[0]) == len(merges):
            return cls(sequences, [_Part.of(merges[0], slice(None), sequences)])
        parts = []
        for merge in dict.fromkeys(merges):
            places = [place for place, each in enumerate(merges) if each == merge]
            parts.append(_Part.of(merge, np.array(places), [sequences[place] for place in places]))
        return cls(sequences, parts)


class Ledger:
    """Events since the last `take`."""

    def __init__(self) -> None:
        self._heard = _Heard.of([])
        self._kept = KeptTokens()
        self._leaving: dict[int, bytes] = {}  # tenants of requests that ended with tokens kept, by handle
        self._clear()

    @property
    def empty(self) -> bool:
        return not (self._tokens or self._finished or self._rejected or self._returned)

    @property
    def only_tokens(self) -> bool:
        """Whether there are tokens without log-probabilities, and no request began or ended."""
        ends = self._finished or self._rejected or self._returned
        return bool(self._tokens or self._kept) and not (ends or self._logprobs)

    @property
    def has_tokens(self) -> bool:
        """Whether there are tokens to be told now."""
        return bool(self._tokens)

    def merge(self, sequence: Sequence, merge: Merge | None) -> None:
        """How the sequence's tokens go together from now on."""
        if sequence.merge != merge:
            if sequence.merge is not None:
                self.tell_all()
            sequence.merge, self._heard = merge, _Heard.of([])

    def tokens(
        self, step: Step, sampled: Sampled, rows: Rows[int], sequences: list[Sequence], now: float
    ) -> None:
        """The tokens that these rows of a step chose; `sequences` are those of all its rows."""
        self._let_go()  # of what ended with this step, ahead of its last tokens
        if not rows:
            return
        every = len(rows) == len(sequences)
        heard = sequences if every else [sequences[row] for row in rows]
        if heard != self._heard.sequences:
            self._heard = _Heard.of(heard)
        chosen: Int64 | slice = slice(None) if every else np.array(rows)
        indices, tokens = step.output_indices[chosen], np.array(sampled.tokens[chosen])
        for merge, places, handles, tenants in self._heard.parts:
            outputs = Outputs(handles, indices[places].astype(np.int32), tokens[places])
            if merge is not None:
                self._kept.keep(merge, outputs, tenants, now)
                continue
            if sampled.logprobs is not None:
                self._logprobs.append(self._of_tokens(sampled.logprobs, np.array(rows)[places], sequences))
            self._tell(Told(outputs, tenants))

    def tell_due(self, now: float, next_s: float) -> None:
        """Tells what must not wait for the end of the next step, which is expected to take `next_s`."""
        for told in self._kept.due(now, next_s):
            self._tell(told)

    def tell_all(self) -> None:
        """Keeps nothing back."""
        for told in self._kept.everything():
            self._tell(told)

    def _let_go(self) -> None:
        if self._leaving:
            for told in self._kept.of(self._leaving):
                self._tell(told)
            self._leaving.clear()

    def _tell(self, told: Told) -> None:
        outputs = told.outputs
        self._handles.append(outputs.handles)
        self._indices.append(outputs.indices)
        self._tokens.append(outputs.tokens)
        self._count += len(outputs)
        for tenant, count in told.tenants.items():
            self.served(tenant, 0, count)

    def _leaves(self, sequence: Sequence) -> None:
        if sequence.merge is not None:
            self._leaving[sequence.handle] = sequence.tenant
            sequence.merge, self._heard = None, _Heard.of([])

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
        self._leaves(sequence)
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
        self._leaves(sequence)
        self._returned.append(Returned(sequence.handle, sequence.outputs))

    def take_tokens(self) -> Outputs:
        """The tokens alone; all else stays for `take`."""
        outputs = self._outputs()
        self._clear_tokens()
        return outputs

    def take(self, kv: KVEvents) -> Events:
        """Everything since the last call, with the block pool's changes."""
        outputs = self._outputs()
        served = {tenant: Served(*counts) for tenant, counts in self._served.items()}
        events = Events(outputs, self._terminals(), kv, served)
        self._clear()
        return events

    def _terminals(self) -> Terminals:
        if not (self._finished or self._rejected or self._returned):
            return NO_TERMINALS
        return Terminals(tuple(self._finished), tuple(self._rejected), tuple(self._returned))

    def _outputs(self) -> Outputs:
        self._let_go()
        if not self._tokens:
            return NO_OUTPUTS
        return Outputs(
            _joined(self._handles),
            _joined(self._indices),
            _joined(self._tokens),
            tuple(self._logprobs),
        )

    def _clear_tokens(self) -> None:
        self._handles: list[Int64] = []  # of tokens, by step; the next two likewise
        self._indices: list[Int32] = []
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
