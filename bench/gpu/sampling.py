"""Inputs of sampling: state of slots for some ways to choose, and logits like a model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from bench.gpu.place import Place
from services.worker.engine.torch.cuda.arguments import BITS, SamplingState
from services.worker.scheduler.request import Sampling

WAYS = {
    "greedy": Sampling(),
    "temperature 1": Sampling(temperature=1.0, seed=7),
    "top-k 50, top-p 0.95": Sampling(temperature=0.8, top_k=50, top_p=0.95, seed=7),
    "top-p 0.95, min-p 0.02": Sampling(temperature=1.2, top_p=0.95, min_p=0.02, seed=7),
    "penalties": Sampling(
        temperature=0.8,
        top_p=0.95,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.1,
        seed=7,
    ),
}


class Drawn(NamedTuple):
    """Arguments of `sample`."""

    logits: torch.Tensor  # [rows, vocab] fp32
    slots: torch.Tensor
    indices: torch.Tensor
    state: SamplingState
    tokens: torch.Tensor  # int32 [rows], poisoned
    draws: bool
    filters: bool

    def run(self, kernels: object, workspace: torch.Tensor) -> torch.Tensor:
        """Through `kernels.sample`."""
        kernels.sample(  # type: ignore[attr-defined]
            self.logits,
            self.slots,
            self.indices,
            None,
            self.state,
            self.tokens,
            workspace,
            draws=self.draws,
            filters=self.filters,
        )
        return self.tokens


def drawn(place: Place, ways: Sequence[Sampling], vocab: int, seed: int = 0) -> Drawn:
    """A row a way; logits are spread so that some tens of tokens matter."""
    rows, device = len(ways), place.device
    logits = 3.0 * place.random(rows, vocab, dtype=torch.float32, seed=seed)
    return Drawn(
        logits=logits,
        slots=torch.arange(rows, dtype=torch.int32, device=device),
        indices=torch.arange(rows, dtype=torch.int32, device=device) * 3,
        state=_state(place, ways, vocab, seed),
        tokens=torch.full((rows,), -9, dtype=torch.int32, device=device),
        draws=any(not way.greedy for way in ways),
        filters=any(way.top_k or way.top_p < 1.0 for way in ways),
    )


def _state(place: Place, ways: Sequence[Sampling], vocab: int, seed: int) -> SamplingState:
    def of(values: list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([*values, 0], dtype=dtype, device=place.device)

    slots = len(ways) + 1
    low = [_signed(way.seed & 0xFFFFFFFF) for way in ways]
    high = [_signed(way.seed >> 32) for way in ways]
    seeds = torch.tensor([[*low, 0], [*high, 0]], dtype=torch.int32, device=place.device).t().contiguous()
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 3, (slots, vocab), dtype=torch.int16, generator=generator)
    history = torch.where(torch.rand(slots, vocab, generator=generator) < 0.01, counts, 0).to(torch.int16)
    repetition = of([way.repetition_penalty for way in ways], torch.float32)
    repetition[-1] = 1.0
    top_p = of([way.top_p for way in ways], torch.float64)
    top_p[-1] = 1.0
    return SamplingState(
        temperature=of([way.temperature for way in ways], torch.float32),
        top_k=of([way.top_k for way in ways], torch.int32),
        top_p=top_p,
        log_min_p=torch.tensor([*(max(way.min_p, 1e-45) for way in ways), 1e-45], dtype=torch.float32)
        .log()
        .to(place.device),
        repetition=repetition,
        presence=of([way.presence_penalty for way in ways], torch.float32),
        frequency=of([way.frequency_penalty for way in ways], torch.float32),
        seed=seeds,
        min_tokens=of([0.0] * len(ways), torch.int32),
        unstopped=torch.full((slots, -(-vocab // BITS)), -1, dtype=torch.int32, device=place.device),
        history=history.to(place.device),
        last_token=of([0.0] * len(ways), torch.int32),
    )


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
