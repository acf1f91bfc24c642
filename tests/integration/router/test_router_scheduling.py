"""Batch work gives way and goes on exactly; targets, limits and labels reach whom they concern."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from headrace.v1 import router_pb2, session_pb2

from tests.support.router_house import House, open_house, read
from tests.support.scripted_worker import ScriptedWorker, all_at_once, end, update
from tests.support.waiting import eventually

Request = router_pb2.GenerateRequest
OUT = [70, 71, 72, 73, 74, 75]
STANDARD, BATCH = 2, 3


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as it:
        yield it


def work(number: int, latency_class: int = BATCH) -> Any:
    return Request(token_ids={"ids": [9, 9, number]}, max_tokens=6, latency_class=latency_class)


async def ended(worker: ScriptedWorker, submit: session_pb2.Submit) -> None:
    worker.say(update(submit, submit.next_index, OUT[submit.next_index :], end()))


async def test_batch_work_gives_way_and_goes_on_where_it_was(house: House) -> None:
    worker = await house.worker(sequences=2).connect()
    asked = [work(0), work(1, STANDARD)]
    streams = [asyncio.create_task(read(house.stub.Generate(each))) for each in asked]
    await worker.submitted(2)
    worker.sequences = 0
    for submit in worker.submits:
        worker.say(update(submit, 0, OUT[:3]))
    await eventually(lambda: house.metric("headrace_output_tokens_total") == 6, "all is taken")
    urgent = asyncio.create_task(read(house.stub.Generate(Request(token_ids={"ids": [5] * 8}, max_tokens=6))))
    cancel = await worker.cancelled()
    paused = next(each for each in worker.submits if each.slot == cancel.slot)
    assert paused.latency_class == BATCH
    worker.sequences = 1
    worker.say(update(paused, 3, OUT[3:4]), update(paused, 4, (), end(session_pb2.END_REASON_CANCELLED)))
    first = await worker.submitted(3)
    assert list(first.prompt_ids) == [5] * 8, "the interactive request has its place"
    await ended(worker, first)
    assert (await urgent).ids == OUT
    worker.sequences = 2
    again = await worker.submitted(4)
    assert (again.request_id, again.attempt, again.next_index) == (paused.request_id, 2, 3)
    assert list(again.delivered_ids) == OUT[:3], "what came after the pause was told is not counted"
    for submit in (again, next(each for each in worker.submits[:2] if each is not paused)):
        worker.say(update(submit, 3, OUT[3:], end()))
    for answer in [await each for each in streams]:
        assert answer.error is None
        assert answer.ids == OUT
    assert house.metric("headrace_requests_displaced_total", how="paused") == 1
    assert house.metric("headrace_requests_moved_total") == 0, "giving way is no loss"


async def test_preferred_labels_are_preferred_not_needed(house: House) -> None:
    for name in ("us", "eu"):
        await house.worker(worker_id=name, labels={"region": name}, script=all_at_once(OUT)).connect()
    await house.all_take_work()
    wanted = Request(token_ids={"ids": [5] * 8}, max_tokens=6, preferred_labels={"region": "eu"})
    for _ in range(5):
        assert (await house.stub.GenerateUnary(wanted)).worker_id == "eu"
    await house.workers[1].die()
    await eventually(lambda: house.router._dispatcher.workers.get("eu") is None, "the preferred one is gone")
    assert (await house.stub.GenerateUnary(wanted)).worker_id == "us"


async def test_a_deterministic_request_goes_to_a_worker_that_is(house: House) -> None:
    for name, able in (("fast", ("logprobs",)), ("exact", ("logprobs", "deterministic"))):
        await house.worker(worker_id=name, capabilities=able, script=all_at_once(OUT)).connect()
    for _ in range(4):
        finished = await house.stub.GenerateUnary(Request(text="x", deterministic=True, max_tokens=6))
        assert finished.worker_id == "exact"


async def test_a_tenants_own_targets_reach_the_worker(tmp_path: Path) -> None:
    tenants = tmp_path / "tenants.toml"
    tenants.write_text("[tenants.local.standard]\nttft_s = 9.0\ntpot_s = 0.7\n")
    async with open_house(tmp_path, tenants_file=tenants) as house:
        worker = await house.worker(script=all_at_once(OUT)).connect()
        await house.stub.GenerateUnary(Request(text="x", latency_class=2, max_tokens=6))
        submit = await worker.submitted()
        assert (submit.ttft_target_ms, submit.tpot_target_ms) == (9000, 700)


async def test_of_what_waits_only_so_much_is_one_tenants(tmp_path: Path) -> None:
    tenants = tmp_path / "tenants.toml"
    tenants.write_text("[tenants.local]\nqueued_requests = 2\n")
    async with open_house(tmp_path, tenants_file=tenants) as house:
        await house.worker(sequences=0).connect()
        waiting = [asyncio.create_task(read(house.stub.Generate(work(n)))) for n in range(2)]
        await eventually(lambda: len(house.router._dispatcher.scheduler) == 2, "two wait")
        refused = await read(house.stub.Generate(work(3)))
        assert refused.error is not None
        assert "2 requests" in (refused.error.details() or "")
        assert (
            house.metric("headrace_admissions_total", **{"class": "batch"}, verdict="tenant_queue_full") == 1
        )
        for each in waiting:
            each.cancel()
