"""A step being put together: who is in it with how many tokens, and what it will cost."""

from __future__ import annotations

from array import array
from itertools import accumulate, compress

import numpy as np

from services.worker.scheduler.sequence import Sequence
from services.worker.scheduler.step import (
    LAST_SAMPLED,
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


def build_step(number: int, draft: Draft, entering: list[Sequence]) -> Step:
    """The draft as arrays, decodes first; those in `entering` are new in their slots."""
    rows = [*draft.decodes, *draft.chunks]
    samples = [True] * len(draft.decodes)
    samples += [sequence.missing == take for sequence, take in draft.chunks.items()]
    new_blocks = [len(sequence.blocks) - sequence.announced for sequence in rows]
    return Step(
        number=number,
        slots=np.array([sequence.slot for sequence in rows], np.int32),
        query_lens=np.array([1] * len(draft.decodes) + list(draft.chunks.values()), np.int32),
        context_lens=np.array([sequence.computed for sequence in rows], np.int32),
        tokens=_tokens(draft),
        samples=np.array(samples, np.bool_),
        output_indices=np.array([sequence.outputs + sequence.pending for sequence in rows], np.int64),
        block_offsets=np.array([0, *accumulate(new_blocks)], np.int32),
        block_ids=np.array(
            [block for s in compress(rows, new_blocks) for block in s.blocks[s.announced :]], np.int32
        ),
        inits=tuple(_slot_init(sequence) for sequence in entering),
        cost=draft.cost,
        constrained=tuple(
            Constrained(row, sequence.handle)
            for row, sequence in enumerate(rows)
            if sequence.constrained and samples[row]
        ),
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
