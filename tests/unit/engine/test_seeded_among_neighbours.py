"""Every request of a crowd gets the ids that it gets alone, whatever steps it shares with whom.

In fp32, in bf16 where products are our own (`compiled/product.py`), and wherever it is asked for: elsewhere
products round by the batch, which in fp32 hardly ever shows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from services.worker.engine.torch.compiled.product import can_multiply
from services.worker.scheduler.events import Finished
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import LatencyClass, Request, Sampling
from tests.support.drive import Drive
from tests.support.offline import offline, prompt_of, request_of
from tests.support.tiny_llama import TinyLlama, write_tiny_llama

MOST = 65  # one request and 64 neighbours
LONGEST = 366  # tokens of one request, prompt and output
ARRIVALS = 3  # a step
CHUNKS = SchedulerSettings(max_chunk=300, min_chunk=16)
SHARED = prompt_of(128, seed=99)  # two blocks that every fifth prompt begins with
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {},
    {"temperature": 0.8, "top_p": 0.9, "logprobs": 3},
    {"temperature": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    {"temperature": 1.3, "top_k": 40},
    {"temperature": 1.0, "min_p": 0.02, "min_tokens": 9},
    {"repetition_penalty": 1.1, "logprobs": 0},
)


def member(handle: int) -> Request:
    """One of the crowd: lengths, classes and sampling are mixed; batch work comes first."""
    length = 1 + handle * 37 % 190
    begins = SHARED if handle % 5 == 0 else prompt_of(0)
    kind = KINDS[handle % len(KINDS)]
    return request_of(
        handle,
        np.concatenate([begins, prompt_of(length, seed=handle)]),
        32 + handle * 7 % 17,
        sampling=Sampling(seed=2**63 + handle, ignore_eos="min_tokens" not in kind, **kind),
        latency_class=LatencyClass(3 - handle % 3) if handle else LatencyClass.BATCH,
        kv_key=b"k" * 32 if handle % 5 == 0 else b"",
    )


class Served(NamedTuple):
    """A model, and the numbers it is computed in."""

    model: Path
    dtype: str
    deterministic: bool

    def drive(self, scheduler: SchedulerSettings | None = None, **settings: Any) -> Drive:
        chosen: dict[str, Any] = {"dtype": self.dtype, "deterministic": self.deterministic}
        return offline(self.model, scheduler, **chosen, **settings)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "bfloat16, deterministic"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    dtype, _, deterministic = request.param.partition(", ")
    if dtype == "bfloat16" and not (deterministic or can_multiply()):
        pytest.skip("this CPU has no AVX512-BF16")
    whole = dtype == "bfloat16" and not deterministic  # panels
    shape = TinyLlama(hidden=128, heads=8, kv_heads=4) if whole else TinyLlama()
    model = write_tiny_llama(tmp_path_factory.mktemp("llama"), shape)
    return Served(model, dtype, bool(deterministic))


@pytest.fixture(scope="module")
def alone(served: Served) -> list[list[int]]:
    """Of each member, by handle: its ids in steps of its own, its prompt in one piece, nothing reused."""
    drive = served.drive(kv_blocks=8, max_seqs=1)
    for handle in range(MOST):
        drive.add(replace(member(handle), kv_key=b""))
        drive.run()
    assert together(drive) == 1
    return [drive.stories[handle].tokens for handle in range(MOST)]


def crowd(drive: Drive, count: int) -> dict[int, list[int]]:
    """They arrive while others run; their ids when all have ended."""
    for handle in range(count):
        drive.add(member(handle))
        if handle % ARRIVALS == 0:
            drive.turn()
    drive.run()
    drive.scheduler.check()
    return {handle: story.tokens for handle, story in drive.stories.items()}


def together(drive: Drive) -> int:
    return max(len(step.slots) for step in drive.steps)


def is_mixed(drive: Drive) -> bool:
    """Whether prompts were computed in steps in which others decoded."""
    return any((step.query_lens > 1).any() and (step.query_lens == 1).any() for step in drive.steps)


def is_chunked(drive: Drive) -> bool:
    """Whether prompts were computed in pieces: rows of several tokens that choose none."""
    return any((~step.samples & (step.query_lens > 1)).any() for step in drive.steps)


def preemptions(drive: Drive) -> int:
    ends = [end for story in drive.stories.values() for end in story.terminals]
    return sum(end.usage.preemptions for end in ends if isinstance(end, Finished))


@pytest.mark.parametrize("run_ahead", [0, 1])
@pytest.mark.parametrize("neighbours", [1, 3, 17, 64])
def test_ids_among_neighbours_are_those_alone(
    served: Served, alone: list[list[int]], neighbours: int, run_ahead: int
) -> None:
    count = neighbours + 1
    drive = served.drive(CHUNKS, run_ahead=run_ahead, max_seqs=count, kv_blocks=7 * count)
    ids = crowd(drive, count)
    assert ids == dict(enumerate(alone[:count]))
    assert together(drive) > 0.7 * count
    assert count < 5 or (is_mixed(drive) and is_chunked(drive))


@pytest.mark.parametrize("run_ahead", [0, 1])
@pytest.mark.parametrize("neighbours", [1, 3, 17, 64])
def test_ids_of_the_preempted_are_those_alone(
    served: Served, alone: list[list[int]], neighbours: int, run_ahead: int
) -> None:
    count = neighbours + 1
    blocks = -(-LONGEST // 64) + count // 2
    drive = served.drive(CHUNKS, run_ahead=run_ahead, max_seqs=max(1, count // 3), kv_blocks=blocks)
    ids = crowd(drive, count)
    assert ids == dict(enumerate(alone[:count]))
    assert preemptions(drive) > 0
