"""Repetition, presence and frequency penalties: functions of the ids so far, kept as counts on the device."""

from __future__ import annotations

import numpy as np
import torch

from services.worker.scheduler.step import SlotInit

_LEAST_REPETITION = 1e-30  # a logit divided by less could become infinite


class Penalties:
    """Counts per slot, only for slots whose requests ask for penalties."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._rows: dict[int, int] = {}  # slot -> row of the tables
        self._free: list[int] = []
        self._counts = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)  # in the output
        self._seen = torch.zeros((0, vocab_size), dtype=torch.bool, device=device)  # in prompt or output
        self._strengths = torch.zeros((0, 3), device=device)  # repetition, presence, frequency

    def begin(self, init: SlotInit) -> None:
        """A sequence enters a slot."""
        if init.slot in self._rows:
            self._free.append(self._rows.pop(init.slot))
        if not init.sampling.penalised:
            return
        row = self._rows[init.slot] = self._take_row()
        sampling = init.sampling
        repetition = max(sampling.repetition_penalty, _LEAST_REPETITION)
        strengths = (repetition, sampling.presence_penalty, sampling.frequency_penalty)
        self._strengths[row] = torch.tensor(strengths, device=self._device)
        counts = np.bincount(init.outputs, minlength=self._counts.shape[1]).astype(np.int32)
        self._counts[row] = torch.from_numpy(counts).to(self._device)
        self._seen[row] = self._counts[row] > 0
        self._seen[row, torch.from_numpy(init.prompt.astype(np.int64)).to(self._device)] = True

    def rows_of(self, slots: list[int]) -> list[tuple[int, int]]:
        """(position in `slots`, table row) of those with penalties."""
        if not self._rows:
            return []
        return [(index, self._rows[slot]) for index, slot in enumerate(slots) if slot in self._rows]

    def apply(self, logits: torch.Tensor, rows: list[tuple[int, int]]) -> None:
        """Change the logits [sampled rows, vocab] of these rows in place."""
        where, table = self._split(rows)
        part = logits[where]
        repetition, presence, frequency = self._strengths[table].unsqueeze(-1).unbind(1)
        scaled = torch.where(part > 0, part / repetition, part * repetition)
        part = torch.where(self._seen[table], scaled, part)
        counts = self._counts[table]
        logits[where] = part - presence * (counts > 0) - frequency * counts

    def count(self, tokens: torch.Tensor, rows: list[tuple[int, int]]) -> None:
        """These rows chose these tokens, [sampled rows]."""
        where, table = self._split(rows)
        chosen = tokens[where].clamp(min=0)
        self._counts[table, chosen] += 1
        self._seen[table, chosen] = True

    def _split(self, rows: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = torch.tensor(rows, device=self._device)
        return pairs[:, 0], pairs[:, 1]

    def _take_row(self) -> int:
        if not self._free:
            self._grow(max(4, len(self._counts)))
        return self._free.pop()

    def _grow(self, more: int) -> None:
        before = len(self._counts)
        self._counts = torch.cat((self._counts, self._counts.new_zeros((more, self._counts.shape[1]))))
        self._seen = torch.cat((self._seen, self._seen.new_zeros((more, self._seen.shape[1]))))
        self._strengths = torch.cat((self._strengths, self._strengths.new_zeros((more, 3))))
        self._free.extend(range(before, before + more))
