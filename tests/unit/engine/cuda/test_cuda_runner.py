"""The CUDA runner's ids are the CPU runner's, whenever the device comes to its work."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from services.worker.scheduler.events import Finished
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import LatencyClass, Request, Sampling
from services.worker.scheduler.step import LAST_SAMPLED
from tests.support.cuda_engine import WISH, cuda_drive, cuda_runner
from tests.support.drive import Drive
from tests.support.fake_device import FakeDevice
from tests.support.offline import offline, prompt_of, request_of

TOKENS = 16
PROMPTS = [prompt_of(length, seed) for seed, length in enumerate((1, 7, 33, 64, 65, 128, 200, 300))]
CHUNKS = SchedulerSettings(max_chunk=96, min_chunk=32)
WHEN = [(0, 0.0), (1, 0.3), (2, 0.7), (3, 0.95)]  # seeds, and how soon the device comes to its work


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> dict[int, list[int]]:
    """By handle, each alone on the CPU."""
    drive = offline(tiny_llama)
    for handle, request in enumerate(requests()):
        drive.add(request)
        drive.run()
        assert len(drive.stories[handle].tokens) == TOKENS
    return {handle: story.tokens for handle, story in drive.stories.items()}


def requests() -> list[Request]:
    """Greedy ones, and one of each way to choose."""
    ways = [
        Sampling(ignore_eos=True),
        Sampling(temperature=0.8, seed=11, ignore_eos=True),
        Sampling(temperature=1.0, top_p=0.9, top_k=20, seed=12, ignore_eos=True),
        Sampling(temperature=1.3, min_p=0.02, seed=2**63 + 5, ignore_eos=True),
        Sampling(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3, ignore_eos=True),
        Sampling(temperature=0.7, frequency_penalty=0.9, seed=13, ignore_eos=True),
        Sampling(min_tokens=TOKENS, stop_token_ids=tuple(range(3, 300)), ignore_eos=True),
        Sampling(temperature=1.0, seed=14, min_tokens=TOKENS, stop_token_ids=tuple(range(40, 400))),
    ]
    return [
        request_of(handle, prompt, TOKENS, sampling=way)
        for handle, (prompt, way) in enumerate(zip(PROMPTS * 2, ways + ways[::-1], strict=True))
    ]


def tokens_of(drive: Drive, count: int) -> dict[int, list[int]]:
    return {handle: drive.stories[handle].tokens for handle in range(count)}


@pytest.mark.parametrize(("seed", "eager"), WHEN)
def test_ids_in_chunks_and_batches_one_step_ahead(
    tiny_llama: Path, expected: dict[int, list[int]], seed: int, eager: float
) -> None:
    device = FakeDevice(seed, eager)
    drive = cuda_drive(cuda_runner(tiny_llama, device), CHUNKS)
    drive.add(*requests())
    drive.run()
    assert tokens_of(drive, len(expected)) == expected
    assert sum(LAST_SAMPLED in step.tokens for step in drive.steps) >= TOKENS - 2
    assert device.replays > len(drive.steps) / 2


@pytest.mark.parametrize(("seed", "eager"), WHEN)
def test_ids_under_aborts_preemption_and_reuse_of_slots(
    tiny_llama: Path, expected: dict[int, list[int]], seed: int, eager: float
) -> None:
    """Three slots and little memory for sixteen requests, some aborted, in an order of chance."""
    chance = random.Random(seed)
    wish = WISH._replace(max_seqs=3, kv_blocks=8)
    runner = cuda_runner(tiny_llama, FakeDevice(seed, eager), wish, step_tokens=96)
    drive = cuda_drive(runner, CHUNKS)
    waiting, aborted = requests(), set[int]()
    second, first = waiting.pop(14), waiting.pop(7)  # long ones: there is no room for both
    drive.add(with_class(first, LatencyClass.BATCH))
    while len(drive.stories[first.handle].tokens) < 3:
        drive.turn()
    drive.add(with_class(second, LatencyClass.INTERACTIVE))
    chance.shuffle(waiting)
    while waiting or drive.scheduler.has_work:
        if waiting and chance.random() < 0.3:
            request = waiting.pop()
            drive.add(
                with_class(request, LatencyClass.INTERACTIVE if len(waiting) % 3 else LatencyClass.BATCH)
            )
        drive.turn()
        if chance.random() < 0.03 and (open_handles := unfinished(drive)):
            aborted.add(handle := chance.choice(open_handles))
            drive.scheduler.abort(handle, drive.now)
    drive.run()
    drive.scheduler.check()
    for handle, story in drive.stories.items():
        assert story.tokens == expected[handle][: len(story.tokens)], handle
        assert handle in aborted or len(story.tokens) == TOKENS
    assert len({init.slot for step in drive.steps for init in step.inits}) == 3
    ends = [end for story in drive.stories.values() for end in story.terminals if isinstance(end, Finished)]
    assert sum(end.usage.preemptions for end in ends), "nobody was preempted"


def with_class(request: Request, latency_class: LatencyClass) -> Request:
    return Request(
        handle=request.handle,
        prompt=request.prompt,
        max_tokens=request.max_tokens,
        arrival_s=0.0,
        sampling=request.sampling,
        latency_class=latency_class,
        kv_key=b"k" * 32,
    )


def unfinished(drive: Drive) -> list[int]:
    return [handle for handle, story in drive.stories.items() if not story.terminals]


@pytest.mark.parametrize(("seed", "eager"), WHEN[:2])
def test_resumed_requests_count_penalties_of_what_was_delivered(
    tiny_llama: Path, expected: dict[int, list[int]], seed: int, eager: float
) -> None:
    drive = cuda_drive(cuda_runner(tiny_llama, FakeDevice(seed, eager)))
    for request in requests():
        told = np.array(expected[request.handle][:7], np.int32)
        drive.add(
            request_of(request.handle, request.prompt, TOKENS, sampling=request.sampling, delivered=told)
        )
    drive.run()
    assert tokens_of(drive, len(expected)) == {handle: tokens[7:] for handle, tokens in expected.items()}
