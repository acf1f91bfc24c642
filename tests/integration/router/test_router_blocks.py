"""What workers tell of their blocks decides where prompts go; gaps, breaks and nonsense do no harm."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from headrace.v1 import router_pb2, session_pb2

from services.common.kv_chain import chain_names, chain_root
from services.router.policy import LatencyClass
from tests.support.router_house import NUMERICS, House, open_house
from tests.support.scripted_worker import ScriptedWorker, all_at_once
from tests.support.waiting import eventually

Request = router_pb2.GenerateRequest
CAPABLE = ("prefix_cache", "logprobs")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as it:
        yield it


def prompt(first: int, length: int = 640) -> Request:
    return Request(token_ids={"ids": [first] * length}, max_tokens=2)


def names_of(submit: session_pb2.Submit) -> list[bytes]:
    """Names of a prompt's blocks as a worker computes them, by the key that it was given."""
    root = chain_root(submit.kv_key, NUMERICS)
    names = chain_names(submit.kv_key, root, array("I", submit.prompt_ids).tobytes()).names
    return [names[at : at + 16] for at in range(0, len(names), 16)]


async def two(house: House) -> list[ScriptedWorker]:
    workers = [
        house.worker(worker_id=n, script=all_at_once([5, 6]), capabilities=CAPABLE) for n in ("a", "b")
    ]
    for each in workers:
        await each.connect()
    await house.all_take_work()
    return workers


def snapshot(names: list[bytes], following: int = 1, *, last: bool = True) -> session_pb2.KvSnapshot:
    return session_pb2.KvSnapshot(next_event_number=following, digests=b"".join(names), last=last)


def events(first: int, stored: list[bytes]) -> session_pb2.KvEvents:
    return session_pb2.KvEvents(
        first_number=first, events=[session_pb2.KvEvent(stored=name) for name in stored]
    )


def wanted(worker: ScriptedWorker) -> int:
    return sum(frame.kv_snapshot_wanted for frame in worker.frames)


def kept(house: House, key: str) -> int:
    return house.router._dispatcher.scheduler.fleet("tiny").index.kept(key)


async def test_a_worker_is_asked_for_what_it_keeps_and_then_given_what_fits(house: House) -> None:
    workers = await two(house)
    await eventually(lambda: all(wanted(each) for each in workers), "snapshots are wanted")
    for each in workers:
        each.say(kv_snapshot=snapshot([]))
    await house.stub.GenerateUnary(prompt(7))
    taker = next(each for each in workers if each.submits)
    other = next(each for each in workers if each is not taker)
    names = names_of(taker.submits[0])[:9]
    other.say(kv_events=events(1, names))
    await eventually(lambda: kept(house, other.worker_id) == 9, "the other keeps the prompt now")
    taker.say(kv_snapshot=snapshot([]))
    await eventually(lambda: kept(house, taker.worker_id) == 0, "and the first lost it")
    for number in range(5):
        await house.stub.GenerateUnary(
            Request(token_ids={"ids": [7] * 620 + [9 + number] * 20}, max_tokens=2)
        )
    assert len(other.submits) == 5


async def test_a_gap_asks_for_everything_again(house: House) -> None:
    worker = (await two(house))[0]
    await eventually(lambda: wanted(worker) == 1, "a snapshot is wanted")
    worker.say(kv_snapshot=snapshot([bytes([n]) * 16 for n in range(1, 21)], 21))
    await eventually(lambda: kept(house, "a") == 20, "it is taken")
    worker.say(kv_events=events(30, [b"x" * 16]))
    await eventually(lambda: wanted(worker) == 2, "a gap makes another one wanted")
    assert house.metric("headrace_bad_frames_total", kind="kv_news") == 1
    worker.say(kv_snapshot=snapshot([b"x" * 16], 31))
    await eventually(lambda: kept(house, "a") == 1, "and that is what it keeps")


async def test_the_same_process_that_comes_back_is_known_at_once_another_is_not(house: House) -> None:
    worker = (await two(house))[0]
    await eventually(lambda: wanted(worker) == 1, "a snapshot is wanted")
    worker.say(kv_snapshot=snapshot([bytes([n]) * 16 for n in range(1, 21)], 21))
    await eventually(lambda: kept(house, "a") == 20, "it is taken")
    await worker.die()
    await eventually(lambda: house.router._dispatcher.workers.get("a") is None, "its session is over")
    again = house.worker(worker_id="a", capabilities=CAPABLE)
    again._hello.incarnation = again.incarnation = worker.incarnation
    await again.connect()
    assert kept(house, "a") == 20
    await again.die()
    await eventually(lambda: house.router._dispatcher.workers.get("a") is None, "its session is over")
    await house.worker(worker_id="a", capabilities=CAPABLE).connect()
    assert kept(house, "a") == 0


async def test_nonsense_about_blocks_costs_only_who_sends_it(house: House) -> None:
    liar, honest = await two(house)
    honest.say(kv_snapshot=snapshot([]))
    for number in range(40):
        liar.say(kv_snapshot=snapshot([b"y" * 16] * 3000, number, last=number % 2 == 0))
        liar.say(
            kv_events=session_pb2.KvEvents(first_number=number, events=[session_pb2.KvEvent(stored=b"short")])
        )
        liar.say(tenant_service=[session_pb2.TenantService(tenant_tag=b"z" * 16, prompt_tokens=1 << 60)])
        liar.say(step_model=session_pb2.StepModel(a=float("nan"), b=-1.0, c=1e300, upper_quantile=0.0))
    await eventually(lambda: house.metric("headrace_bad_frames_total", kind="kv_news") > 3, "it is counted")
    for number in range(12):
        finished = await house.stub.GenerateUnary(prompt(11 + number))
        assert list(finished.token_ids) == [5, 6]
    assert honest.submits, "the honest worker has its part"


async def test_work_done_for_a_tenant_at_other_routers_counts_here(house: House) -> None:
    worker = await house.worker(script=all_at_once([5, 6])).connect()
    scheduler = house.router._dispatcher.scheduler

    def counter() -> float:
        return scheduler.counter("tiny", "local", LatencyClass.STANDARD)

    await house.stub.GenerateUnary(Request(text="x", max_tokens=2, latency_class=2))
    tag, own = worker.submits[0].tenant_tag, counter()
    worker.say(
        tenant_service=[session_pb2.TenantService(tenant_tag=tag, prompt_tokens=2000, output_tokens=500)]
    )
    await eventually(lambda: counter() >= own + 2000, "what other routers' requests took is charged")
    before = counter()
    unknown = session_pb2.TenantService(tenant_tag=b"?" * 16, prompt_tokens=500, output_tokens=0)
    worker.say(tenant_service=[unknown])
    await house.stub.GenerateUnary(Request(text="y", max_tokens=2, latency_class=3))
    assert counter() == before, "nobody's work and other classes' work do not"
