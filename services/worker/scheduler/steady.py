"""The same sequences decode, step after step: as columns, not one by one.

Most steps are so, and with 256 sequences looking into each costs more than all else here. What happens to
them meanwhile is not in the sequences before `dissolve`, which `Residents` calls ahead of whoever looks into
one. Those that need a block, or have filled one, are looked into as always; steps in which one ends are for
others.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING

import numpy as np

from services.worker.scheduler.sequence import Sequence
from services.worker.scheduler.step import LAST_SAMPLED, Int32, Sampled, Step, StepCost

if TYPE_CHECKING:
    from services.worker.scheduler.residents import Residents

LEAST = 16  # sequences: looking into so few of them costs less
MOST_STEPS = 64  # whose tokens are not in the sequences


class SteadyDecodes:
    """Rows of steps that only compute and choose the next token of each.

    Args:
        sequences: none has a grammar.
        step: their last one, just launched; `sequences` know of it.
    """

    def __init__(self, sequences: list[Sequence], step: Step, residents: Residents) -> None:
        self.sequences = sequences
        self.target_s = min([each.tpot_s for each in sequences if each.tpot_s is not None], default=None)
        self._residents = residents
        self._members = dict.fromkeys(sequences)  # a set
        self._last = step
        self._launched_s = 0.0
        self._launches = 0
        self._choices = min([each.max_outputs - each.outputs - each.pending for each in sequences])
        self._capacity = np.array([each.capacity for each in sequences])
        self._settling: _Settling | None = None

    @property
    def next_cost(self) -> StepCost:
        """Of the next step."""
        rows = float(len(self.sequences))
        return StepCost(1.0, rows, 0.0, self._last.cost.context + rows, rows)

    def may_go_on(self, blocks: int) -> bool:
        """Whether all may be in the next step; `blocks`: that could be taken."""
        return self._choices > 0 and blocks >= len(self.sequences)

    def launch(self, now: float, *, unseen: bool) -> Step:
        """The next step; `unseen`: the one before it is under way yet."""
        before, rows = self._last, len(self.sequences)
        context = before.context_lens + np.int32(1)
        offsets, blocks = self._grow(context)
        if unseen:
            tokens = np.full(rows, LAST_SAMPLED, np.int32)
        else:
            assert self._settling is not None, "the step before was settled here"
            tokens = self._settling.last
        self._last = Step(
            number=before.number + 1,
            slots=before.slots,
            query_lens=before.query_lens,
            context_lens=context,
            tokens=tokens,
            samples=before.samples,
            output_indices=before.output_indices + 1,
            block_offsets=offsets,
            block_ids=blocks,
            inits=(),
            cost=self.next_cost,
        )
        self._launched_s = now
        self._launches += 1
        self._choices -= 1
        return self._last

    def settle(self, sampled: Sampled) -> bool:
        """Takes what their oldest launched step chose; False, and nothing done, when one ends with it."""
        if self._settling is None:
            self._settling = _Settling(self.sequences)
        if not self._settling.take(sampled.tokens):
            return False
        for row in self._settling.full():
            self._residents.seal(self.sequences[row])
            self._settling.sealed(row)
        return True

    def dissolve(self) -> None:
        """Puts all that happened into the sequences, for good."""
        settled = 0
        if self._settling is not None:
            self._settling.write_down()
            settled = self._settling.steps
        for sequence in self.sequences:
            sequence.computed += self._launches
            sequence.pending += self._launches - settled
            sequence.outputs += settled
        if self._launches:
            for sequence in self.sequences:
                sequence.last_step = self._last.number
                sequence.last_launch_s = self._launched_s

    def _grow(self, context: Int32) -> tuple[Int32, Int32]:
        """Offsets and ids of new blocks, for those whose blocks are full."""
        counts, blocks = np.zeros(len(context) + 1, np.int32), []
        for row in np.flatnonzero(context == self._capacity).tolist():
            sequence = self.sequences[row]
            grown = self._residents.grow(sequence, int(context[row]) + 1)
            assert grown, "there are as many blocks as sequences"
            self._capacity[row] = sequence.capacity
            new = self._residents.announce((sequence,))[sequence]
            counts[row + 1] = len(new)
            blocks += new
        return np.cumsum(counts, dtype=np.int32), np.array(blocks, np.int32)


class _Settling:
    """Tokens that were chosen, by step; all steps before these are in the sequences."""

    def __init__(self, sequences: Rows[Sequence]) -> None:
        self.steps = 0
        self.last: Int32
        self._sequences = sequences
        self._left = min([each.max_outputs - each.outputs for each in sequences])
        stop_ids = frozenset[int]().union(*{each.stop_ids for each in sequences})
        self._stop_ids = np.array(sorted(stop_ids), np.int32)
        self._settled = np.array([each.settled for each in sequences])
        self._full_at = np.array([each.full_at for each in sequences])
        self._heard = np.empty((MOST_STEPS, len(sequences)), np.int32)
        self._count = 0  # of steps in it
        self._written = [0] * len(sequences)  # how many of these the sequences have

    def take(self, tokens: Int32) -> bool:
        """One more step, unless a sequence ends with it."""
        stops = len(self._stop_ids) and bool(np.isin(tokens, self._stop_ids).any())
        if self._left <= 1 or stops or tokens.min() < 0:
            return False
        if self._count == MOST_STEPS:
            self.write_down()
        self._heard[self._count] = tokens
        self.last = tokens.copy()
        self._count += 1
        self._left -= 1
        self._settled += 1
        self.steps += 1
        return True

    def full(self) -> list[int]:
        """Rows that have filled a block, which know of their tokens now."""
        rows: list[int] = np.flatnonzero(self._settled >= self._full_at).tolist()
        for row in rows:
            sequence = self._sequences[row]
            sequence.ids.frombytes(self._heard[self._written[row] : self._count, row].tobytes())
            sequence.settled = int(self._settled[row])
            self._written[row] = self._count
        return rows

    def sealed(self, row: int) -> None:
        """Its next block is full later."""
        self._full_at[row] = self._sequences[row].full_at

    def write_down(self) -> None:
        """Tells all sequences their tokens."""
        heard = np.ascontiguousarray(self._heard[: self._count].T)  # [sequences, steps]
        rows = zip(self._sequences, heard, self._written, self._settled.tolist(), strict=True)
        for sequence, tokens, written, settled in rows:
            sequence.ids.frombytes(tokens[written:].tobytes())
            sequence.settled = settled
        self._written = [0] * len(self._sequences)
        self._count = 0
