"""A step being put together: who is in it with how many tokens, and what it will cost."""

from __future__ import annotations

from array import array

import numpy as np

from services.worker.scheduler.sequence import Sequence
from services.worker.scheduler.step import LAST_SAMPLED, Constrained, SlotInit, Step, StepCost


class Draft:
    """Rows of the next step. A sequence changes only when the step is launched: a row can be taken out."""

    def __init__(self) -> None:
        self.rows: dict[Sequence, int] = {}  # sequence -> tokens to compute
        self.chunk_tokens = 0  # of all prefill chunks
        self.preempted = False  # somebody had to leave for it
        self._chunks: set[Sequence] = set()
        self._attention = 0.0
        self._context = 0
        self._decodes = 0

    @property
    def cost(self) -> StepCost:
        tokens = float(self._decodes + self.chunk_tokens)
        return StepCost(1.0, tokens, self._attention, float(self._context), float(self._decodes))

    def add_decode(self, sequence: Sequence) -> None:
        """One token of a sequence that has only its newest token to compute."""
        self.rows[sequence] = 1
        self._decodes += 1
        self._context += sequence.computed + 1

    def add_chunk(self, sequence: Sequence, take: int) -> None:
        """The next `take` tokens of a prompt, or of a sequence that is computed again."""
        self.rows[sequence] = take
        self._chunks.add(sequence)
        self.chunk_tokens += take
        self._attention += take * (sequence.computed + take / 2.0)

    def drop(self, sequence: Sequence) -> None:
        """Take a row out again, if it is in."""
        take = self.rows.pop(sequence, 0)
        if sequence in self._chunks:
            self._chunks.remove(sequence)
            self.chunk_tokens -= take
            self._attention -= take * (sequence.computed + take / 2.0)
        elif take:
            self._decodes -= 1
            self._context -= sequence.computed + 1


def build_step(number: int, draft: Draft, entering: list[Sequence]) -> Step:
    """The draft as arrays; those in `entering` are new in their slots."""
    tokens = array("i")
    new_blocks: list[int] = []
    offsets = [0]
    samples = []
    for sequence, take in draft.rows.items():
        start = sequence.computed
        tokens.extend(sequence.ids[start : start + take])
        if start + take > len(sequence.ids):
            tokens.append(LAST_SAMPLED)
        samples.append(start + take == sequence.length)
        if sequence.announced < len(sequence.blocks):
            new_blocks.extend(sequence.blocks[sequence.announced :])
        offsets.append(len(new_blocks))
    rows = draft.rows
    return Step(
        number=number,
        slots=np.array([sequence.slot for sequence in rows], np.int32),
        query_lens=np.array(list(rows.values()), np.int32),
        context_lens=np.array([sequence.computed for sequence in rows], np.int32),
        tokens=np.frombuffer(tokens, np.int32),
        samples=np.array(samples, np.bool_),
        output_indices=np.array([sequence.outputs + sequence.pending for sequence in rows], np.int64),
        block_offsets=np.array(offsets, np.int32),
        block_ids=np.array(new_blocks, np.int32),
        inits=tuple(_slot_init(sequence) for sequence in entering),
        cost=draft.cost,
        constrained=tuple(
            Constrained(row, sequence.handle)
            for row, (sequence, chooses) in enumerate(zip(rows, samples, strict=True))
            if chooses and sequence.constrained
        ),
    )


def _slot_init(sequence: Sequence) -> SlotInit:
    assert sequence.slot is not None
    ids = np.array(sequence.ids, np.int32)
    prompt, outputs = ids[: sequence.prompt_len], ids[sequence.prompt_len :]
    stop_ids = np.array(sorted(sequence.stop_ids), np.int32)
    return SlotInit(sequence.slot, sequence.request.sampling, prompt, outputs, stop_ids)
