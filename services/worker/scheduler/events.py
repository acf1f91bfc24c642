"""What happened to requests since one last asked, and how full the engine is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain
from typing import NamedTuple

import numpy as np

from services.worker.scheduler.request import NO_IDS, FinishReason
from services.worker.scheduler.step import Bool, Float32, Int32, Int64


class TokenLogprobs(NamedTuple):
    """Of one output token; `top` is best first and need not contain the chosen one."""

    chosen: float
    top_ids: tuple[int, ...]
    top: tuple[float, ...]


class TokenNews(NamedTuple):
    """A new output token of one sequence; a row of `Outputs`."""

    handle: int
    output_index: int
    token: int
    logprobs: TokenLogprobs | None  # when the request asked


@dataclass(frozen=True, slots=True, eq=False)
class OutputLogprobs:
    """Log-probabilities of some tokens of `Outputs`: those of one step."""

    rows: Int32  # [m] of Outputs
    counts: Int32  # [m] how many of the best ones were asked for, at most k
    chosen: Float32  # [m]
    top_ids: Int32  # [m, k] best first
    top: Float32  # [m, k]

    def by_row(self) -> Iterator[tuple[int, TokenLogprobs]]:
        """As values, cut to what was asked for."""
        tables = (self.rows, self.counts, self.chosen, self.top_ids, self.top)
        for row, count, chosen, ids, top in zip(*(table.tolist() for table in tables), strict=True):
            yield row, TokenLogprobs(chosen, tuple(ids[:count]), tuple(top[:count]))


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """New tokens of all sequences as arrays, a row each; those of one sequence are in order."""

    handles: Int64  # [n]
    indices: Int32  # [n] in the output of their sequences
    tokens: Int32  # [n]
    logprobs: tuple[OutputLogprobs, ...] = ()

    def __len__(self) -> int:
        return len(self.handles)

    def __iter__(self) -> Iterator[TokenNews]:
        known = dict(chain.from_iterable(part.by_row() for part in self.logprobs))
        for row, (handle, index, token) in enumerate(self.plain()):
            yield TokenNews(handle, index, token, known.get(row))

    def plain(self) -> Iterator[tuple[int, int, int]]:
        """Handle, index and id of each; at a tenth of what `TokenNews` cost."""
        return zip(self.handles.tolist(), self.indices.tolist(), self.tokens.tolist(), strict=True)

    def described(self) -> Iterator[tuple[int, TokenLogprobs]]:
        """Handle and log-probabilities of each token that has some."""
        handles = self.handles.tolist() if self.logprobs else []
        for part in self.logprobs:
            for row, logprobs in part.by_row():
                yield handles[row], logprobs


NO_OUTPUTS = Outputs(np.empty(0, np.int64), NO_IDS, NO_IDS)


class Usage(NamedTuple):
    prompt_tokens: int
    cached_tokens: int  # prompt tokens whose KV was found at first admission
    output_tokens: int  # from index 0, so those delivered before a resume count
    preemptions: int
    recomputed_tokens: int  # computed a second time because of preemption


class Timings(NamedTuple):
    """Seconds, by the scheduler's clock; they add up to the time between arrival and finish."""

    queue_s: float  # arrival to first step
    prefill_s: float  # first step to first new token
    decode_s: float  # first new token to finish


class Finished(NamedTuple):
    """The terminal event of an accepted request; its last tokens are in the same report or an earlier one."""

    handle: int
    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_token_id: int | None = None  # with EOS and STOP_TOKEN
    message: str = ""  # with ERROR


class RejectReason(IntEnum):
    INVALID = 1  # no engine of this model could serve it; do not retry
    TOO_LONG = 2  # prompt beyond the context; do not retry here
    DUPLICATE_HANDLE = 3
    DRAINING = 4  # retry on another worker


class Rejected(NamedTuple):
    """The request was never accepted: nothing was computed, no other event of this submission follows."""

    handle: int
    reason: RejectReason
    message: str


class Returned(NamedTuple):
    """Handed back unfinished (drain): resume it elsewhere with the tokens delivered so far. Terminal here."""

    handle: int
    output_tokens: int  # delivered so far, those before a resume included


class Terminals(NamedTuple):
    """Requests that ended, each in exactly one of the three."""

    finished: tuple[Finished, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    returned: tuple[Returned, ...] = ()


NO_TERMINALS = Terminals()


class Served(NamedTuple):
    """Tokens computed for one tenant tag since the last report."""

    prompt_tokens: int  # uncached ones only
    output_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class KVEvents:
    """Changes of the set of reusable blocks, in order; numbers run without gaps while the engine lives."""

    first_number: int  # of digests[0]
    stored: Bool  # [n] true: now findable; false: gone
    digests: tuple[bytes, ...]  # [n] 32 bytes each


NO_KV_EVENTS = KVEvents(0, np.empty(0, np.bool_), ())


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Everything that happened since the last call that returned one of these."""

    outputs: Outputs = NO_OUTPUTS
    terminals: Terminals = NO_TERMINALS
    kv: KVEvents = NO_KV_EVENTS
    served: dict[bytes, Served] = field(default_factory=dict)


class KVSnapshot(NamedTuple):
    """All reusable blocks as they were after event `number`."""

    number: int
    digests: tuple[bytes, ...]


class Load(NamedTuple):
    """How full the engine is, after all commands up to `StepReport.last_command`."""

    running: int
    waiting: int
    waiting_uncached_tokens: int  # prompt tokens still to compute, of waiting and running requests
    blocks_free: int
    blocks_cached: int  # reusable, and free when needed
    blocks_held: int
    blocks_total: int
    batch_requests: int = 0  # of running and waiting, batch work that gives way to others
    batch_uncached_tokens: int = 0  # of waiting_uncached_tokens, theirs


class Room(NamedTuple):
    """What could be started."""

    prefill_tokens: int
    slots: int
    blocks: int


class Credits(NamedTuple):
    """What the engine could start now beyond all it has: the window that sessions share (DESIGN §5).

    The last request of a grant may overdraw `prefill_tokens`: otherwise no prompt longer than the window
    would ever start.
    """

    prefill_tokens: int
    slots: int
    blocks: int
    waiting_by_session: dict[int, int]  # uncached tokens waiting, by Request.session: the demand to split by
    foreground: Room  # the same for requests that are not BATCH: they may have what batch work holds
