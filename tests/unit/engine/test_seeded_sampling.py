"""A seed gives the same ids alone, among neighbours, in pieces, and resumed elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import Sampling
from tests.support.offline import offline, prompt_of, request_of

PROMPT = prompt_of(70, seed=3)
TOKENS = 32
KINDS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.0},
    "top-k": {"temperature": 1.3, "top_k": 40},
    "top-p": {"temperature": 0.8, "top_p": 0.9},
    "min-p": {"temperature": 1.0, "min_p": 0.02},
    "penalties": {
        "temperature": 1.0,
        "top_p": 0.95,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
    },
    "min-tokens": {"temperature": 1.0, "min_tokens": 20},
}


def sampling(kind: str, seed: int = 1234567890123456789) -> Sampling:
    return Sampling(seed=seed, ignore_eos=kind != "min-tokens", **KINDS[kind])


def alone(model: Path, kind: str, seed: int = 1234567890123456789) -> list[int]:
    drive = offline(model)
    drive.add(request_of(1, PROMPT, TOKENS, sampling=sampling(kind, seed)))
    drive.run()
    return drive.stories[1].tokens


@pytest.mark.parametrize("kind", KINDS)
def test_same_ids_in_a_batch_of_16(tiny_llama: Path, kind: str) -> None:
    drive = offline(tiny_llama, SchedulerSettings(max_chunk=48))
    drive.add(request_of(1, PROMPT, TOKENS, sampling=sampling(kind)))
    for handle in range(2, 17):
        neighbour = sampling(list(KINDS)[handle % len(KINDS)], seed=handle)
        drive.add(request_of(handle, prompt_of(handle * 9, handle), TOKENS, sampling=neighbour))
    drive.run()
    assert max(len(step.slots) for step in drive.steps) == 16
    assert drive.stories[1].tokens == alone(tiny_llama, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delivered", [0, 1, 17])
def test_same_ids_resumed_on_another_engine(tiny_llama: Path, kind: str, delivered: int) -> None:
    whole = alone(tiny_llama, kind)
    drive = offline(tiny_llama)
    drive.add(request_of(1, PROMPT, TOKENS, sampling=sampling(kind), delivered=whole[:delivered]))
    drive.run()
    assert drive.stories[1].first_index == delivered
    assert drive.stories[1].tokens == whole[delivered:]


def test_seeds_differ(tiny_llama: Path) -> None:
    outputs = {tuple(alone(tiny_llama, "temperature", seed)) for seed in range(8)}
    assert len(outputs) == 8
