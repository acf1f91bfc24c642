"""A mesh without a model's weights: simulated workers behind the real session, scheduler and router."""

from __future__ import annotations

import asyncio
from pathlib import Path

from headrace.v1 import router_pb2, types_pb2

from tests.support.generating import generate, request
from tests.support.mesh import Mesh
from tests.support.tiny_llama import write_tiny_llama
from tests.support.tiny_tokenizer import write_tiny_tokenizer

SESSION = '{"orphan_hold_s": 120, "stale_s": 30, "lost_s": 60, "hung_s": 60}'


def without_weights(directory: Path) -> Path:
    write_tiny_tokenizer(directory)
    write_tiny_llama(directory)
    (directory / "model.safetensors").unlink()
    return directory


def own_request(number: int, tokens: int) -> router_pb2.GenerateRequest:
    """Nothing of it is known from another."""
    sampling = types_pb2.SamplingParams(ignore_eos=True)
    none = types_pb2.CACHE_SCOPE_NONE
    return request(ids=[5, 6, 7, number], max_tokens=tokens, seed=number, sampling=sampling, cache_scope=none)


async def test_streams_outlive_a_worker_whose_step_hangs(tmp_path: Path) -> None:
    model = without_weights(tmp_path / "model")
    soon = {"session": '{"hung_s": 3, "stale_s": 30, "lost_s": 60}'}
    async with Mesh(tmp_path, model, router=soon, worker={"engine": "simulated"}) as mesh:
        await mesh.add_worker(simulated_hang_at_token="150")
        wanted = own_request(9, 400)
        disturbed = asyncio.create_task(generate(mesh.stub, wanted))
        await mesh.add_worker()
        stream = await disturbed
        assert stream.finished is not None
        assert stream.finished.attempts == 2
        assert stream.token_ids == (await generate(mesh.stub, wanted)).token_ids


async def test_lost_frames_lose_no_token_and_double_none(tmp_path: Path) -> None:
    model = without_weights(tmp_path / "model")
    patient = {"failover": '{"return_s": 60}', "session": SESSION}
    async with Mesh(tmp_path, model, router=patient, worker={"engine": "simulated"}) as mesh:
        await mesh.add_worker()
        expected = [await generate(mesh.stub, own_request(number, 60)) for number in range(8)]
        await mesh.add_worker(simulated_drop_rate="0.02")
        streams = await asyncio.gather(*(generate(mesh.stub, own_request(n, 60)) for n in range(8)))
        assert [each.token_ids for each in streams] == [each.token_ids for each in expected]
        made_again = [each for each in streams if each.finished is None or each.finished.attempts > 1]
        assert not made_again, "what was lost is told again"


async def test_a_worker_that_says_it_is_idle_takes_no_more_than_its_credit(tmp_path: Path) -> None:
    model = without_weights(tmp_path / "model")
    async with Mesh(tmp_path, model, worker={"engine": "simulated"}) as mesh:
        idle = mesh.add_worker(simulated_load_factor="0", max_seqs="4")
        await asyncio.gather(idle, mesh.add_worker(max_seqs="4"))
        streams = await asyncio.gather(*(generate(mesh.stub, own_request(n, 40)) for n in range(40)))
        assert [len(each.token_ids) for each in streams] == [40] * 40


async def test_a_stream_goes_on_exactly_when_its_simulated_worker_dies(tmp_path: Path) -> None:
    model = without_weights(tmp_path / "model")
    patient = {"standard": '{"patience_s": 120}'}  # as long as a worker takes to start
    async with Mesh(tmp_path, model, router=patient, worker={"engine": "simulated"}) as mesh:
        await mesh.add_worker(simulated_die_at_token="150")
        sampling = types_pb2.SamplingParams(ignore_eos=True)
        wanted = request(
            ids=[5, 6, 7, 8],
            max_tokens=400,
            seed=77,
            sampling=sampling,
            cache_scope=types_pb2.CACHE_SCOPE_NONE,
            latency_class=types_pb2.LATENCY_CLASS_STANDARD,
        )
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
