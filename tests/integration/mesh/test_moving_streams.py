"""Streams of real processes leave a worker that drains or is slow; where nobody else is there, they stay."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

from headrace.v1 import router_pb2, types_pb2

from tests.support.generating import Stream, generate, request
from tests.support.mesh import Mesh
from tests.support.tiny_llama import write_tiny_llama
from tests.support.tiny_tokenizer import write_tiny_tokenizer
from tests.support.waiting import eventually

QUICK, SLOW = 0.02, 0.2
TOKEN_S = 5e-5  # of prompts; else a slow worker's guess at its own is too far from the quick one's


def simulated(directory: Path, step_s: float) -> dict[str, str]:
    """Settings of a worker with steps of so many seconds."""
    calibration = directory / f"steps-of-{step_s}.toml"
    calibration.write_text(f"[step]\nstep_s = {step_s}\ntoken_s = {TOKEN_S}\n")
    return {"engine": "simulated", "simulated_calibration": str(calibration)}


def without_weights(directory: Path) -> Path:
    write_tiny_tokenizer(directory)
    write_tiny_llama(directory)
    (directory / "model.safetensors").unlink()
    return directory


def wanted(number: int, tokens: int) -> router_pb2.GenerateRequest:
    sampling = types_pb2.SamplingParams(ignore_eos=True)
    none = types_pb2.CACHE_SCOPE_NONE
    return request(ids=[5, 6, 7, number], max_tokens=tokens, seed=number, sampling=sampling, cache_scope=none)


class Reader:
    """A stream that is read in the background."""

    def __init__(self, mesh: Mesh, asked: router_pb2.GenerateRequest) -> None:
        self.stream = Stream()
        self._mesh, self._asked = mesh, asked
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> Stream:
        replies = self._mesh.stub.Generate(self._asked)
        try:
            async for reply in replies:
                self.stream.take(reply)
        finally:
            replies.cancel()
        return self.stream

    async def has(self, tokens: int) -> None:
        await eventually(lambda: len(self.stream.token_ids) >= tokens, f"{tokens} tokens", 60)


async def test_a_draining_worker_is_gone_long_before_its_streams_would_have_ended(tmp_path: Path) -> None:
    worker = {**simulated(tmp_path, QUICK), "drain_timeout_s": "120"}
    async with Mesh(tmp_path, without_weights(tmp_path / "model"), worker=worker) as mesh:
        await asyncio.gather(mesh.add_worker(), mesh.add_worker())
        readers = [Reader(mesh, wanted(number, 300)) for number in range(6)]
        for each in readers:
            await each.has(5)
        mesh.workers[0].send(signal.SIGTERM)
        assert await mesh.workers[0].ended() == 0
        undisturbed = [asyncio.create_task(generate(mesh.stub, wanted(n, 300))) for n in range(6)]
        streams = [await each.task for each in readers]
        ends = {each.finished.worker_id for each in streams if each.finished}
        assert ends == {"worker-1"}, "none of them ended where it began to drain"
        assert {each.finished.attempts for each in streams if each.finished} == {1, 2}
        assert [each.token_ids for each in streams] == [(await each).token_ids for each in undisturbed]


async def test_with_nobody_else_there_streams_end_where_they_are(tmp_path: Path) -> None:
    worker = {**simulated(tmp_path, QUICK), "drain_timeout_s": "60"}
    async with Mesh(tmp_path, without_weights(tmp_path / "model"), worker=worker) as mesh:
        await mesh.add_worker()
        reader = Reader(mesh, wanted(1, 100))
        await reader.has(5)
        mesh.workers[0].send(signal.SIGTERM)
        stream = await reader.task
        assert stream.finished is not None
        assert (len(stream.token_ids), stream.finished.attempts) == (100, 1)
        assert await mesh.workers[0].ended() == 0


async def test_a_stream_goes_on_at_a_faster_worker_that_has_come(tmp_path: Path) -> None:
    failover = {"failover": json.dumps({"moving_stay_s": 0.5})}
    model = without_weights(tmp_path / "model")
    async with Mesh(tmp_path, model, router=failover, worker={"max_seqs": "4"}) as mesh:
        await mesh.add_worker(**simulated(tmp_path, SLOW))
        reader = Reader(mesh, wanted(1, 200))
        await reader.has(3)
        await mesh.add_worker(**simulated(tmp_path, QUICK / 2))
        stream = await reader.task
        assert stream.finished is not None
        where = (stream.finished.worker_id, stream.finished.attempts)
        assert where == ("worker-1", 2), mesh.processes["router"].tail()
        assert stream.token_ids == (await generate(mesh.stub, wanted(1, 200))).token_ids
