"""A step being put together: who is in it with how many tokens, and what it will cost."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from services.worker.scheduler.residents import Residents
from services.worker.scheduler.sequence import Sequence
from services.worker.scheduler.step import (
    LAST_SAMPLED,
    Bool,
    Constrained,
    Int32,
    SlotInit,
    Step,
    StepCost,
)


class Draft:
    """Rows of the next step. A sequence changes only when the step is launched: a row can be taken out."""

    def __init__(self) -> None:
        self.decodes: dict[Sequence, None] = {}  # a set in order: only the newest token is to compute
        self.chunks: dict[Sequence, int] = {}  # sequence -> tokens to compute
        self.chunk_tokens = 0  # of all prefill chunks
        self.preempted = False  # somebody had to leave for it
        self._attention = 0.0
        self._context = 0

    def __len__(self) -> int:
        return len(self.decodes) + len(self.chunks)

    def __contains__(self, sequence: object) -> bool:
        return sequence in self.decodes or sequence in self.chunks

    @property
    def cost(self) -> StepCost:
        decodes = float(len(self.decodes))
        return StepCost(1.0, decodes + self.chunk_tokens, self._attention, float(self._context), decodes)

    def add_decodes(self, sequences: list[Sequence]) -> None:
        """One token each of sequences that have only their newest token to compute."""
        self.decodes.update(dict.fromkeys(sequences))
        self._context += sum([sequence.computed for sequence in sequences]) + len(sequences)

    def add_chunk(self, sequence: Sequence, take: int) -> None:
        """The next `take` tokens of a prompt, or of a sequence that is computed again."""
        self.chunks[sequence] = take
        self.chunk_tokens += take
        self._attention += take * (sequence.computed + take / 2.0)

    def drop(self, sequence: Sequence) -> None:
        """Take a row out again, if it is in."""
        if sequence in self.decodes:
            del self.decodes[sequence]
            self._context -= sequence.computed + 1
        take = self.chunks.pop(sequence, 0)
        self.chunk_tokens -= take
        self._attention -= take * (sequence.computed + take / 2.0)


def build_step(number: int, draft: Draft, residents: Residents) -> Step:
    """The draft as arrays, decodes first; the runner is told with it what it lacks of these sequences."""
    rows = [*draft.decodes, *draft.chunks]
    decodes = len(draft.decodes)
    samples = np.ones(len(rows), np.bool_)
    samples[decodes:] = [sequence.missing == take for sequence, take in draft.chunks.items()]
    query_lens = np.ones(len(rows), np.int32)
    query_lens[decodes:] = list(draft.chunks.values())
    entering = residents.entering(draft.chunks, number)
    offsets, blocks = _new_blocks(rows, residents.announce(draft))
    return Step(
        number=number,
        slots=_column([sequence.slot for sequence in rows]),
        query_lens=query_lens,
        context_lens=_column([sequence.computed for sequence in rows]),
        tokens=_tokens(draft),
        samples=samples,
        output_indices=np.frombuffer(array("q", [each.outputs + each.pending for each in rows]), np.int64),
        block_offsets=offsets,
        block_ids=blocks,
        inits=tuple(_slot_init(sequence) for sequence in entering),
        cost=draft.cost,
        constrained=_constrained(rows, samples) if residents.constrained else (),
    )


def _column(values: list[Any]) -> Int32:
    """By way of an array: numpy takes twice as long for a list."""
    return np.frombuffer(array("i", values), np.int32)


def _new_blocks(rows: list[Sequence], told: dict[Sequence, list[int]]) -> tuple[Int32, Int32]:
    """Offsets and ids of the blocks that are new to the runner. Few rows have some."""
    counts = np.zeros(len(rows) + 1, np.int32)
    blocks: list[int] = []
    if told:
        for row, sequence in enumerate(rows, 1):
            if sequence in told:
                counts[row] = len(told[sequence])
                blocks += told[sequence]
    return np.cumsum(counts, dtype=np.int32), _column(blocks)


def _constrained(rows: list[Sequence], samples: Bool) -> tuple[Constrained, ...]:
    return tuple(
        Constrained(row, sequence.handle)
        for row, sequence in enumerate(rows)
        if sequence.constrained and samples[row]
    )


def _tokens(draft: Draft) -> Int32:
    """The newest token of each decode, seen or not, then the chunks."""
    tokens = array("i", [LAST_SAMPLED if s.pending else s.ids[-1] for s in draft.decodes])
    for sequence, take in draft.chunks.items():
        tokens.extend(sequence.ids[sequence.computed : sequence.computed + take])
    return np.frombuffer(tokens, np.int32)


def _slot_init(sequence: Sequence) -> SlotInit:
    assert sequence.slot is not None
    ids = np.array(sequence.ids, np.int32)
    prompt, outputs = ids[: sequence.prompt_len], ids[sequence.prompt_len :]
    stop_ids = np.array(sorted(sequence.stop_ids), np.int32)
    return SlotInit(sequence.slot, sequence.request.sampling, prompt, outputs, stop_ids)
