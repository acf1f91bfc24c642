"""Greedy ids of the default model in fp32 equal those of `transformers` on the same weights.

A difference counts as legitimate only where the reference's two best logits differ by less than 1e-4; at most
one prompt in a hundred may differ so, and the count is printed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from services.common.models import ModelDirectory
from services.worker.engine.client import EngineClient
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import Request, Sampling
from tests.support import reference
from tests.support.generating import generate, request
from tests.support.mesh import Mesh

pytestmark = pytest.mark.smollm2
MOST_DIFFERENCES = 0.01


class Engine:
    """An engine process, driven by the ids of prompts."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._outputs: dict[int, list[int]] = {}
        self._ends: dict[int, asyncio.Event] = {}
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        await self._client.close()
        await self._reading

    async def run(self, prompt: Sequence[int], sampling: Sampling | None = None) -> list[int]:
        handle = len(self._outputs)
        self._outputs[handle], self._ends[handle] = [], asyncio.Event()
        self._client.submit(
            Request(
                handle=handle,
                prompt=np.asarray(prompt, dtype=np.int32),
                max_tokens=reference.TOKENS,
                arrival_s=0.0,
                sampling=sampling or Sampling(),
            )
        )
        await self._ends[handle].wait()
        return self._outputs[handle]

    async def _read(self) -> None:
        async for report in self._client.reports():
            for handle, _, token in report.outputs.plain():
                self._outputs[handle].append(token)
            for finished in report.terminals.finished:
                self._ends[finished.handle].set()
            for rejected in report.terminals.rejected:
                raise AssertionError(rejected.message)


@pytest_asyncio.fixture(scope="module", params=[8192, 32], ids=["whole prompts", "prompts chunked at 32"])
async def engine(request: pytest.FixtureRequest, smollm2: ModelDirectory) -> AsyncIterator[Engine]:
    settings = EngineSettings(
        model=smollm2.path,
        device="cpu",
        dtype="float32",
        kv_blocks=400,
        scheduler=SchedulerSettings(max_chunk=request.param),
    )
    running = Engine(await EngineClient.start(settings))
    yield running
    await running.close()


def assert_same(expected: Sequence[reference.ReferenceOutput], outputs: Sequence[Sequence[int]]) -> None:
    comparisons = [reference.compare(*pair) for pair in zip(expected, outputs, strict=True)]
    wrong = [at for at, each in enumerate(comparisons) if not (each.equal or each.legitimate)]
    differing = sum(not each.equal for each in comparisons)
    print(f"\n{differing} of {len(comparisons)} prompts differ where the reference is undecided")
    assert not wrong, f"prompts {wrong} differ: {[comparisons[at] for at in wrong]}"
    assert differing <= MOST_DIFFERENCES * len(comparisons)


def test_the_reference_is_what_transformers_gives(
    smollm2: ModelDirectory, expected: list[reference.ReferenceOutput]
) -> None:
    prompts = reference.mt_bench_prompts()
    some = [3, 21]
    ids = [reference.chat_ids(smollm2.path, prompts[at]) for at in some]
    assert ids == [expected[at].prompt_ids for at in some]
    again = reference.greedy(smollm2.path, ids, reference.TOKENS)
    assert [each.ids for each in again] == [expected[at].ids for at in some]


async def test_alone(engine: Engine, expected: list[reference.ReferenceOutput]) -> None:
    outputs = [await engine.run(each.prompt_ids) for each in expected[::8]]
    assert_same(expected[::8], outputs)


async def test_in_batches_of_16_mixed_with_sampled_requests(
    engine: Engine, expected: list[reference.ReferenceOutput]
) -> None:
    outputs: list[list[int]] = []
    for start in range(0, len(expected), 8):
        greedy = [engine.run(each.prompt_ids) for each in expected[start : start + 8]]
        sampled = [
            engine.run(each.prompt_ids, Sampling(temperature=1.0, top_p=0.9, seed=at))
            for at, each in enumerate(expected[start : start + 8])
        ]
        finished = await asyncio.gather(*greedy, *sampled)
        outputs.extend(finished[:8])
    assert_same(expected, outputs)


async def test_through_the_whole_mesh(
    smollm2: ModelDirectory, expected: list[reference.ReferenceOutput], tmp_path: Path
) -> None:
    prompts = reference.mt_bench_prompts()
    async with Mesh(tmp_path, smollm2.path, worker={"dtype": "float32"}) as mesh:
        await mesh.add_worker()
        wanted = [request(chat=prompt, max_tokens=reference.TOKENS) for prompt in prompts]
        outputs = []
        for start in range(0, len(wanted), 8):
            streams = [generate(mesh.stub, each) for each in wanted[start : start + 8]]
            outputs.extend(stream.token_ids for stream in await asyncio.gather(*streams))
    assert_same(expected, outputs)
