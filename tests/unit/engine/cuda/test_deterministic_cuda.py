"""Deterministic on a card: log-probabilities of a request are the same bits alone and in any company.

The kernels run in the interpreter, as their reference does all else. What a card adds is one assumption: that
its tensor cores compute a row of a tile whatever the others are.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from services.worker.engine.torch.config import parse_config
from services.worker.engine.torch.cuda import kernels, reference
from services.worker.engine.torch.cuda.attention import Attention, OwnAttention
from services.worker.engine.torch.cuda.build import CudaParts, Wish, build_runner
from services.worker.engine.torch.cuda.kernels import products as product_kernels
from services.worker.engine.torch.cuda.products import choose_products
from services.worker.engine.torch.cuda.runner import CudaRunner
from services.worker.engine.torch.weights import open_weights
from services.worker.scheduler.events import TokenLogprobs
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import Request, Sampling
from tests.support.cuda_engine import cuda_drive
from tests.support.drive import Drive
from tests.support.fake_device import FakeDevice
from tests.support.offline import prompt_of, request_of
from tests.support.tiny_llama import TinyLlama, write_tiny_llama
from tests.support.triton_interpreter import multiply_by_rows

SLOTS = 3
STEP_TOKENS = 16
TOKENS = 3


class Answer(NamedTuple):
    tokens: list[int]
    logprobs: list[TokenLogprobs]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers: what the first one's attention gives is kept by the second."""
    shape = TinyLlama(hidden=32, layers=2, heads=2, kv_heads=1, ffn=48, context=128)
    return write_tiny_llama(tmp_path_factory.mktemp("two-layers"), shape)


def runner_of(model: Path) -> CudaRunner:
    device = FakeDevice()
    ours = SimpleNamespace(
        **{name: getattr(reference, name) for name in vars(reference) if not name.startswith("_")}
        | {name: getattr(kernels, name) for name in ("attend", "attention_workspace")}
    )
    recorded = device.kernels(ours)
    products = choose_products(
        "none", deterministic=True, device=device.where, kernels=device.kernels(product_kernels)
    )
    parts = CudaParts("ours", recorded, products.make_linear, Attention(OwnAttention(recorded)), True)
    with (
        torch.inference_mode(),
        open_weights(tuple(model.glob("*.safetensors")), dtype=torch.float32, device=device.where) as weights,
    ):
        return build_runner(
            parse_config(json.loads((model / "config.json").read_text())),
            weights,
            parts,
            Wish(max_seqs=SLOTS, kv_blocks=8),
            device=device,
            dtype=torch.float32,
            step_tokens=STEP_TOKENS,
        )


@pytest.fixture
def runner(model: Path, monkeypatch: pytest.MonkeyPatch) -> CudaRunner:
    multiply_by_rows(monkeypatch)
    return runner_of(model)


def wishes() -> list[Request]:
    """Prompts of less and more than a chunk, and of more than a block."""
    return [
        request_of(
            handle,
            prompt_of(length, seed=handle),
            TOKENS,
            sampling=Sampling(temperature=1.0, seed=handle, ignore_eos=True, logprobs=2),
        )
        for handle, length in enumerate((21, 5, 70))
    ]


def answers_of(drive: Drive) -> dict[int, Answer]:
    """By handle."""
    news = [each for events in drive.events for each in events.outputs]
    return {
        handle: Answer(
            story.tokens, [each.logprobs for each in news if each.handle == handle and each.logprobs]
        )
        for handle, story in drive.stories.items()
    }


def test_logprobs_in_company_are_bit_for_bit_those_alone(runner: CudaRunner) -> None:
    alone = cuda_drive(runner, SchedulerSettings(max_chunk=STEP_TOKENS, min_chunk=4))
    for request in wishes():
        alone.add(request)
        alone.run()
    company = cuda_drive(runner, SchedulerSettings(max_chunk=7, min_chunk=2))
    company.add(*wishes())
    company.run()
    assert answers_of(company) == answers_of(alone)
    assert all(len(answer.logprobs) == TOKENS for answer in answers_of(alone).values())
    assert max(len(step.slots) for step in alone.steps) == 1
    assert any((step.query_lens > 1).any() and (step.query_lens == 1).any() for step in company.steps)
