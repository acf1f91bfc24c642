"""A mesh without a model's weights: simulated workers behind the real session, scheduler and router."""

from __future__ import annotations

import asyncio
from pathlib import Path

from headrace.v1 import types_pb2

from tests.support.generating import generate, request
from tests.support.mesh import Mesh
from tests.support.tiny_llama import write_tiny_llama
from tests.support.tiny_tokenizer import write_tiny_tokenizer


def without_weights(directory: Path) -> Path:
    write_tiny_tokenizer(directory)
    write_tiny_llama(directory)
    (directory / "model.safetensors").unlink()
    return directory


async def test_a_stream_goes_on_exactly_when_its_simulated_worker_dies(tmp_path: Path) -> None:
    model = without_weights(tmp_path / "model")
    async with Mesh(tmp_path, model, worker={"engine": "simulated"}) as mesh:
        await mesh.add_worker(simulated_die_at_token="150")
        sampling = types_pb2.SamplingParams(ignore_eos=True)
        none = types_pb2.CACHE_SCOPE_NONE
        wanted = request(ids=[5, 6, 7, 8], max_tokens=400, seed=77, sampling=sampling, cache_scope=none)
        disturbed = asyncio.create_task(generate(mesh.stub, wanted))
        await mesh.workers[0].ended()
        await mesh.add_worker()
        stream = await disturbed
        again = await generate(mesh.stub, wanted)
        assert stream.finished is not None
        assert stream.finished.attempts == 2
        assert stream.finished.worker_id == mesh.workers[1].name
        assert len(stream.token_ids) == 400
        assert stream.token_ids == again.token_ids
        assert stream.text == again.text
