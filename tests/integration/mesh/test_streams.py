"""Streams through the whole mesh: complete, in order, nothing of one in another, and gone when cancelled."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import grpc
import pytest
from headrace.v1 import admin_pb2, router_pb2, types_pb2

from tests.support.generating import Stream, generate, request
from tests.support.mesh import Mesh
from tests.support.waiting import eventually, eventually_async

STREAMS = 64


def prompts() -> list[list[int]]:
    """Prompts of different lengths that share no beginning."""
    choose = random.Random(7)
    return [[choose.randrange(3, 500) for _ in range(choose.randrange(1, 180))] for _ in range(STREAMS)]


def long_request(ids: list[int], max_tokens: int) -> router_pb2.GenerateRequest:
    sampling = types_pb2.SamplingParams(ignore_eos=True)
    no_cache = types_pb2.CACHE_SCOPE_NONE
    return request(ids=ids, max_tokens=max_tokens, sampling=sampling, cache_scope=no_cache)


async def workers_of(mesh: Mesh) -> list[admin_pb2.WorkerStatus]:
    metadata = mesh.secret.metadata("admin")
    reply = await mesh.admin.ListWorkers(admin_pb2.ListWorkersRequest(), metadata=metadata)
    return list(reply.workers)


async def all_blocks_are_back(mesh: Mesh) -> None:
    """Waits until no block is held; every block is accounted for at every look."""

    async def idle() -> bool:
        workers = await workers_of(mesh)
        for worker in workers:
            load = worker.load
            accounted = load.kv_blocks_free + load.kv_blocks_cached + load.kv_blocks_held
            assert accounted == worker.kv_spec.blocks > 0
        return bool(workers) and all(
            worker.load.kv_blocks_held == worker.load.running == worker.load.waiting == worker.requests == 0
            for worker in workers
        )

    await eventually_async(idle, "no block is held")


async def test_64_streams_at_once_are_what_each_is_alone(mesh: Mesh) -> None:
    requests = [long_request(ids, 8 + len(ids) % 40) for ids in prompts()]
    alone = [await generate(mesh.stub, each) for each in requests[:8]]
    together = await asyncio.gather(*(generate(mesh.stub, each) for each in requests))
    for each, stream in zip(requests, together, strict=True):
        assert stream.finished is not None
        assert len(stream.token_ids) == each.max_tokens
        assert stream.finished.usage.output_tokens == each.max_tokens
        assert stream.finished.usage.prompt_tokens == len(each.token_ids.ids)
    assert [stream.token_ids for stream in together[:8]] == [stream.token_ids for stream in alone]
    await all_blocks_are_back(mesh)


async def test_half_of_64_streams_are_cancelled_and_the_others_do_not_notice(mesh: Mesh) -> None:
    requests = [long_request(ids, 48) for ids in prompts()]
    expected = await asyncio.gather(*(generate(mesh.stub, each) for each in requests[1::2]))

    async def cancelled_after(count: int, each: router_pb2.GenerateRequest) -> None:
        each.max_tokens = 4000
        replies, stream = mesh.stub.Generate(each), Stream()
        async for reply in replies:
            stream.take(reply)
            if len(stream.token_ids) >= count:
                break
        replies.cancel()

    doomed = [cancelled_after(position % 20, each) for position, each in enumerate(requests[0::2])]
    survivors = [generate(mesh.stub, each) for each in requests[1::2]]
    finished = await asyncio.gather(*survivors, *doomed)
    assert [stream.token_ids for stream in finished[: len(survivors)]] == [
        stream.token_ids for stream in expected
    ]
    await all_blocks_are_back(mesh)


async def test_a_client_that_vanishes_frees_the_worker(mesh: Mesh) -> None:
    channel = grpc.aio.insecure_channel(mesh.address)
    replies = channel.unary_stream(
        "/headrace.v1.RouterService/Generate",
        request_serializer=router_pb2.GenerateRequest.SerializeToString,
        response_deserializer=router_pb2.GenerateResponse.FromString,
    )(long_request([5, 6, 7], 4000))
    await replies.read()
    await channel.close()
    await all_blocks_are_back(mesh)


async def test_a_stream_outlives_its_worker(tiny_model: Path, tmp_path: Path) -> None:
    async with Mesh(tmp_path, tiny_model, worker={"dtype": "float32", "threads": "1"}) as mesh:
        await asyncio.gather(mesh.add_worker(), mesh.add_worker())
        wanted = long_request([9, 8, 7, 6], 1800)
        wanted.sampling.temperature, wanted.sampling.seed = 0.9, 1234
        undisturbed = await generate(mesh.stub, wanted)
        replies, stream = mesh.stub.Generate(wanted), Stream()
        while len(stream.token_ids) < 17:
            stream.take(await replies.read())
        (busy,) = [worker.worker_id for worker in await workers_of(mesh) if worker.requests]
        next(process for process in mesh.workers if process.name == busy).send(signal.SIGKILL)
        while stream.finished is None:
            stream.take(await replies.read())
        assert stream.finished.attempts == 2
        assert stream.finished.worker_id != busy
        assert stream.token_ids == undisturbed.token_ids
        assert stream.text == undisturbed.text


async def test_seeded_sampling_is_the_same_alone_and_among_others(mesh: Mesh) -> None:
    def sampled(seed: int) -> router_pb2.GenerateRequest:
        made = request(ids=[11, 12, 13], max_tokens=32, temperature=0.8, seed=seed)
        made.sampling.top_p, made.sampling.ignore_eos = 0.95, True
        return made

    alone = await generate(mesh.stub, sampled(42))
    crowd = await asyncio.gather(*(generate(mesh.stub, sampled(42 + each % 4)) for each in range(16)))
    assert all(stream.token_ids == alone.token_ids for stream in crowd[::4])
    assert len({tuple(stream.token_ids) for stream in crowd}) == 4


async def test_a_missing_seed_is_drawn_and_repeats_the_answer(mesh: Mesh) -> None:
    first = await generate(mesh.stub, request(ids=[11, 12, 13], max_tokens=16, temperature=1.0))
    assert first.finished is not None
    seed = first.finished.seed
    again = await generate(mesh.stub, request(ids=[11, 12, 13], max_tokens=16, temperature=1.0, seed=seed))
    assert again.token_ids == first.token_ids


async def test_a_worker_that_drains_loses_nothing(tiny_model: Path, tmp_path: Path) -> None:
    async with Mesh(tmp_path, tiny_model, worker={"dtype": "float32", "threads": "1"}) as mesh:
        await mesh.add_worker()
        wanted = [long_request([each, 3, 4], 200) for each in range(10, 18)]
        undisturbed = await asyncio.gather(*(generate(mesh.stub, each) for each in wanted))
        running = [asyncio.create_task(generate(mesh.stub, each)) for each in wanted]
        await mesh.add_worker()
        mesh.workers[0].send(signal.SIGTERM)
        assert await mesh.workers[0].ended() == 0
        streams = await asyncio.gather(*running)
        assert [each.token_ids for each in streams] == [each.token_ids for each in undisturbed]


async def test_timings_and_class_come_back_in_finished_and_trailers(mesh: Mesh) -> None:
    replies = mesh.stub.Generate(request("A mill wheel", max_tokens=4))
    stream = Stream()
    async for reply in replies:
        stream.take(reply)
    trailers = dict(await replies.trailing_metadata())
    finished = stream.finished
    assert finished is not None
    assert finished.latency_class == types_pb2.LATENCY_CLASS_INTERACTIVE
    assert finished.attempts == 1
    assert finished.worker_id in {"worker-0", "worker-1"}
    assert 0 < finished.timings.first_token_us <= finished.timings.total_us
    assert "first-token;dur=" in str(trailers["server-timing"])


async def test_text_and_ids_agree_with_the_tokenizer(mesh: Mesh, tiny_model: Path) -> None:
    from tokenizers import Tokenizer

    stream = await generate(mesh.stub, request(ids=[40, 41], max_tokens=64, temperature=1.0, seed=5))
    expected = Tokenizer.from_file(str(tiny_model / "tokenizer.json")).decode(stream.token_ids)
    assert stream.text == expected


async def test_a_repeated_greedy_request_comes_from_the_response_cache(mesh: Mesh) -> None:
    wanted = request("The channel that brings water", max_tokens=12)
    first = await generate(mesh.stub, wanted)
    again = Stream()

    async def answered_from_cache() -> bool:
        nonlocal again
        again = await generate(mesh.stub, wanted)
        return again.finished is not None and again.finished.cached_response

    await eventually_async(answered_from_cache, "the cache answers")
    assert again.token_ids == first.token_ids
    assert again.text == first.text


async def test_without_workers_a_request_waits_for_one(tiny_model: Path, tmp_path: Path) -> None:
    patient = {"standard": '{"patience_s": 120}'}  # as long as a worker takes to start
    async with Mesh(tmp_path, tiny_model, router=patient) as mesh:
        waiting = asyncio.create_task(generate(mesh.stub, request(ids=[3, 4], max_tokens=3, latency_class=2)))
        await eventually(lambda: mesh.metric("headrace_queue_depth") > 0, "the request waits")
        await mesh.add_worker()
        assert (await waiting).finished is not None


async def test_without_workers_an_impatient_request_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    impatient = {"interactive": '{"patience_s": 0.2}'}
    async with Mesh(tmp_path, tiny_model, router=impatient) as mesh:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await generate(mesh.stub, request(ids=[3, 4]))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
