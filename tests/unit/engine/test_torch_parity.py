"""Greedy ids equal those of `transformers` on the same weights, however the work is cut up."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.worker.scheduler.events import Finished
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import LatencyClass, Sampling
from services.worker.scheduler.step import LAST_SAMPLED
from tests.support.drive import Drive
from tests.support.offline import offline, prompt_of, request_of
from tests.support.reference import LEGITIMATE_GAP, ReferenceOutput, compare
from tests.support.tiny_llama import TinyLlama, write_tiny_llama

TOKENS = 24
PROMPTS = [prompt_of(length, seed) for seed, length in enumerate((1, 7, 33, 64, 65, 128, 200, 300))]


def reference(model: Path, prompts: Iterable[np.ndarray], tokens: int = TOKENS) -> list[ReferenceOutput]:
    """Greedy continuations, one prompt at a time, beyond any end-of-sequence id."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return [_continue(network, prompt.tolist(), tokens) for prompt in prompts]


def _continue(network: Any, prompt: list[int], tokens: int) -> ReferenceOutput:
    ids, gaps, cache = list(prompt), [], None
    with torch.inference_mode():
        for _ in range(tokens):
            new = ids if cache is None else ids[-1:]
            out = network(torch.tensor([new]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            best = out.logits[0, -1].float().topk(2)
            gaps.append(float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
    return ReferenceOutput(prompt, ids[len(prompt) :], gaps)


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> list[ReferenceOutput]:
    return reference(tiny_llama, PROMPTS)


def assert_same(expected: ReferenceOutput, ids: list[int]) -> None:
    comparison = compare(expected, ids)
    assert comparison.equal or comparison.legitimate, f"differs at {comparison.position}: {ids}"


def usage(drive: Drive, handle: int) -> Any:
    (terminal,) = drive.stories[handle].terminals
    assert isinstance(terminal, Finished)
    return terminal.usage


def test_reference_is_decided_nearly_everywhere(expected: list[ReferenceOutput]) -> None:
    gaps = [gap for output in expected for gap in output.gaps]
    assert sum(gap < LEGITIMATE_GAP for gap in gaps) <= 0.01 * len(gaps)


def test_alone(tiny_llama: Path, expected: list[ReferenceOutput]) -> None:
    drive = offline(tiny_llama)
    for handle, output in enumerate(expected):
        drive.add(request_of(handle, PROMPTS[handle]))
        drive.run()
        assert_same(output, drive.stories[handle].tokens)


def test_in_a_batch_of_16_with_sampled_requests(tiny_llama: Path, expected: list[ReferenceOutput]) -> None:
    drive = offline(tiny_llama)
    noisy = Sampling(temperature=1.0, top_p=0.9, seed=5, frequency_penalty=0.5, ignore_eos=True)
    for handle, prompt in enumerate(PROMPTS):
        drive.add(request_of(handle, prompt), request_of(100 + handle, prompt, sampling=noisy))
    drive.run()
    assert max(len(step.slots) for step in drive.steps) == 16
    for handle, output in enumerate(expected):
        assert_same(output, drive.stories[handle].tokens)


def test_with_prompts_chunked_at_32(tiny_llama: Path, expected: list[ReferenceOutput]) -> None:
    drive = offline(tiny_llama, SchedulerSettings(max_chunk=32, min_chunk=32))
    for handle, prompt in enumerate(PROMPTS):
        drive.add(request_of(handle, prompt))
    drive.run()
    assert max(len(step.tokens) for step in drive.steps) <= 32 + len(PROMPTS)
    for handle, output in enumerate(expected):
        assert_same(output, drive.stories[handle].tokens)


def test_one_step_ahead_reads_its_token_on_the_device(
    tiny_llama: Path, expected: list[ReferenceOutput]
) -> None:
    drive = offline(tiny_llama, run_ahead=1)
    for handle, prompt in enumerate(PROMPTS):
        drive.add(request_of(handle, prompt))
    drive.run()
    assert sum(LAST_SAMPLED in step.tokens for step in drive.steps) >= TOKENS - 2
    for handle, output in enumerate(expected):
        assert_same(output, drive.stories[handle].tokens)


@pytest.mark.parametrize("kv_key", [b"", b"k" * 32])
def test_after_preemption(tiny_llama: Path, expected: list[ReferenceOutput], kv_key: bytes) -> None:
    drive = offline(tiny_llama, max_seqs=1)
    handle = 6
    batch = {"latency_class": LatencyClass.BATCH, "kv_key": kv_key}
    drive.add(request_of(handle, PROMPTS[handle], **batch))
    while len(drive.stories[handle].tokens) < 9:
        drive.turn()
    drive.add(request_of(99, PROMPTS[0], 4, latency_class=LatencyClass.INTERACTIVE))
    drive.run()
    assert usage(drive, handle).preemptions == 1
    assert usage(drive, handle).recomputed_tokens == (208 if not kv_key else 208 - 192)
    assert_same(expected[handle], drive.stories[handle].tokens)


def test_after_prefix_reuse(tiny_llama: Path, expected: list[ReferenceOutput]) -> None:
    drive = offline(tiny_llama)
    for handle in (5, 6, 7):
        drive.add(request_of(100 + handle, PROMPTS[handle], 1, kv_key=b"k" * 32))
        drive.run()
        drive.add(request_of(handle, PROMPTS[handle], kv_key=b"k" * 32))
        drive.run()
        assert usage(drive, handle).cached_tokens == (len(PROMPTS[handle]) - 1) // 64 * 64
        assert_same(expected[handle], drive.stories[handle].tokens)


def test_another_key_reuses_nothing(tiny_llama: Path) -> None:
    drive = offline(tiny_llama)
    for handle, kv_key in enumerate((b"a" * 32, b"b" * 32, b"")):
        drive.add(request_of(handle, PROMPTS[7], 1, kv_key=kv_key))
        drive.run()
        assert usage(drive, handle).cached_tokens == 0


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "model",
    [
        TinyLlama(tied=False, shards=3),
        TinyLlama(rope_scaling=LLAMA3),
        TinyLlama(rope_scaling={"rope_type": "linear", "factor": 2.0}),
        TinyLlama(heads=8, kv_heads=8, hidden=128),
        TinyLlama(heads=8, kv_heads=1, hidden=128),
        TinyLlama(architecture="Qwen2ForCausalLM", qkv_bias=True),
        TinyLlama(architecture="Qwen3ForCausalLM", qk_norm=True),
        TinyLlama(architecture="MistralForCausalLM", tied=False),
    ],
    ids=["untied-sharded", "llama3-rope", "linear-rope", "mha", "mqa", "qwen2", "qwen3", "mistral"],
)
def test_other_shapes_and_families(tmp_path: Path, model: TinyLlama) -> None:
    directory = write_tiny_llama(tmp_path, model)
    prompts = [PROMPTS[2], PROMPTS[6]]
    drive = offline(directory, SchedulerSettings(max_chunk=80))
    drive.add(*(request_of(handle, prompt) for handle, prompt in enumerate(prompts)))
    drive.run()
    for handle, output in enumerate(reference(directory, prompts)):
        assert_same(output, drive.stories[handle].tokens)
