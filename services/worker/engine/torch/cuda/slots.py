"""Request slots: block tables and how each slot samples live on the device; the host sends what changes.

All of it but the history is one piece of int32 memory, so that a step's changes are one scatter of
(place, word). A slot's words are written in stream order, behind every launched step that reads them: a slot
can be given away while its last step is under way. The last slot is the scratch slot: padding uses it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from services.worker.engine.torch.cuda.arguments import BITS, SamplingState
from services.worker.engine.torch.cuda.device import Device
from services.worker.scheduler.request import Sampling
from services.worker.scheduler.step import Int32, Int64, SlotInit, Step

_WORDS = struct.Struct("<fidffffQi")  # temperature to min_tokens, in the order of SamplingState
_WIDTHS = (1, 1, 2, 1, 1, 1, 1, 2, 1)  # words of each
_LEAST_REPETITION = 1e-30  # a logit divided by less could become infinite
_LEAST_MIN_P = 1e-45
_MOST = 0x7FFFFFFF
_LARGEST = 3.4e38  # of fp32
_PROMPT_BIT = -0x8000
_ALL = -1  # every bit of a word


class Changes(NamedTuple):
    """Words to write, each [n]: `places` of the slots' memory, or of the history."""

    places: Int64
    words: Int32


class HistoryChange(NamedTuple):
    """A slot whose penalties count from these ids on: all others are zero."""

    slot: int
    changes: Changes


class DeviceSlots:
    """Memory of the device by slot."""

    def __init__(self, device: Device, max_seqs: int, width: int, vocab: int) -> None:
        slots = self.scratch = max_seqs
        slots += 1
        self.width = width  # blocks of a table
        self.mask_words = -(-vocab // BITS)
        sizes = [slots * words for words in (*_WIDTHS, self.mask_words, width, 1)]
        self.starts = np.cumsum([0, *(size + size % 2 for size in sizes)]).tolist()  # even: of 8 bytes
        self.memory = device.zeros((self.starts[-1],), torch.int32)
        self.history = device.zeros((slots, vocab), torch.int16)
        parts = [self.memory[start : start + size] for start, size in zip(self.starts, sizes, strict=False)]
        self.tables = parts[10].view(slots, width)
        self.state = self._state(parts, slots)
        self.state.top_p.fill_(1.0)
        self.state.repetition.fill_(1.0)

    def _state(self, parts: list[torch.Tensor], slots: int) -> SamplingState:
        return SamplingState(
            temperature=parts[0].view(torch.float32),
            top_k=parts[1],
            top_p=parts[2].view(torch.float64),
            log_min_p=parts[3].view(torch.float32),
            repetition=parts[4].view(torch.float32),
            presence=parts[5].view(torch.float32),
            frequency=parts[6].view(torch.float32),
            seed=parts[7].view(slots, 2),
            min_tokens=parts[8],
            unstopped=parts[9].view(slots, self.mask_words),
            history=self.history,
            last_token=parts[11],
        )

    def write(self, places: torch.Tensor, words: torch.Tensor) -> None:
        """Words of the device, int32 [n], to places, int64 [n]."""
        self.memory.scatter_(0, places, words)

    def clear_history(self, slot: int) -> None:
        """Nothing counted."""
        self.history[slot].zero_()

    def write_history(self, places: torch.Tensor, words: torch.Tensor) -> None:
        """Entries of the history, as of `write`."""
        self.history.view(-1).scatter_(0, places, words.to(torch.int16))


class SlotChanges:
    """The host's half: what a step changes of the slots, and what it must remember of each."""

    def __init__(self, slots: DeviceSlots, max_seqs: int, vocab: int, block_size: int) -> None:
        self.logprobs = np.full(max_seqs, -1, np.int32)  # of the best ids that each slot asks for; -1: none
        self._blocks = np.zeros(max_seqs, np.int32)  # in each table
        self._width = slots.width
        self._vocab = vocab
        self._mask_words = slots.mask_words
        widths = np.array(_WIDTHS)
        self._strides = np.repeat(widths, widths)
        self._firsts = np.concatenate(
            [start + np.arange(width) for start, width in zip(slots.starts, _WIDTHS, strict=False)]
        )
        self._unstopped, self._tables = slots.starts[9], slots.starts[10]
        self._history = np.zeros(vocab, np.int32)  # a scratch pad

    def of(self, step: Step) -> Iterator[Changes]:
        """Everything but histories; a place is named once."""
        for init in step.inits:
            self._blocks[init.slot] = 0
            self.logprobs[init.slot] = -1 if init.sampling.logprobs is None else init.sampling.logprobs
            yield from self._init(init)
        if len(step.block_ids):
            yield self._new_blocks(step)

    def histories(self, step: Step) -> Iterator[HistoryChange]:
        """Of slots with penalties that begin."""
        return (self._history_of(init) for init in step.inits if init.sampling.penalised)

    def _init(self, init: SlotInit) -> Iterator[Changes]:
        banned = init.sampling.min_tokens > len(init.outputs) and len(init.stop_ids) > 0
        words = _words(init.sampling, min(init.sampling.min_tokens, _MOST) if banned else 0)
        yield Changes(self._firsts + self._strides * init.slot, words)
        if banned:
            bits = np.full(self._mask_words, _ALL, np.int32)
            np.bitwise_and.at(bits, init.stop_ids // BITS, ~(1 << init.stop_ids % BITS).astype(np.int32))
            first = self._unstopped + init.slot * self._mask_words
            yield Changes(np.arange(first, first + self._mask_words), bits)

    def _new_blocks(self, step: Step) -> Changes:
        counts = step.block_offsets[1:] - step.block_offsets[:-1]
        growing = np.flatnonzero(counts)
        slots, more = step.slots[growing], counts[growing]
        first = self._tables + slots.astype(np.int64) * self._width + self._blocks[slots]
        self._blocks[slots] += more
        places = np.repeat(first - step.block_offsets[growing], more) + np.arange(len(step.block_ids))
        return Changes(places, step.block_ids)

    def _history_of(self, init: SlotInit) -> HistoryChange:
        """Equal ids get equal words: the order of writing does not matter."""
        ids = np.concatenate((init.prompt, init.outputs)) if len(init.outputs) else init.prompt
        words = np.full(len(ids), _PROMPT_BIT, np.int32)
        if len(init.outputs):
            counts = self._history
            np.add.at(counts, init.outputs, 1)
            counts[init.outputs] = np.minimum(counts[init.outputs], -_PROMPT_BIT - 1)
            counts[init.prompt] |= _PROMPT_BIT
            words = counts[ids]
            counts[ids] = 0
        return HistoryChange(init.slot, Changes(ids.astype(np.int64) + init.slot * self._vocab, words))


def _words(sampling: Sampling, min_tokens: int) -> Int32:
    """The slot's parameters as the device keeps them, [11]."""
    packed = _WORDS.pack(
        _narrow(sampling.temperature),
        min(sampling.top_k, _MOST),
        sampling.top_p,
        _log_min_p(sampling.min_p),
        _narrow(max(sampling.repetition_penalty, _LEAST_REPETITION)),
        _narrow(sampling.presence_penalty),
        _narrow(sampling.frequency_penalty),
        sampling.seed,
        min_tokens,
    )
    return np.frombuffer(packed, np.int32)


def _narrow(value: float) -> float:
    """Within what fp32 can hold."""
    return max(-_LARGEST, min(value, _LARGEST))


@lru_cache(maxsize=64)
def _log_min_p(min_p: float) -> float:
    """As the CPU's sampler computes it."""
    return float(torch.tensor(max(min_p, _LEAST_MIN_P), dtype=torch.float32).log())
