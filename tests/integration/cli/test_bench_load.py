"""The load generator against a scripted router: what is sent, in which order, and how it is accounted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from headrace.client import channel
from headrace.request import build_request
from headrace.v1 import types_pb2
from headrace.v1.router_pb2_grpc import RouterServiceStub

from bench.results_contract import Result
from services.cli.bench.arrivals import constant
from services.cli.bench.call import Caller, clock
from services.cli.bench.drive import closed_loop, open_loop
from services.cli.bench.mix import Mix, parse_mix
from services.cli.bench.record import Record
from services.cli.bench.workload import Job, jobs
from services.common import errors
from tests.support.commands import headrace, start
from tests.support.scripted_router import Events, ScriptedRouter, delta, finished, serving
from tests.support.waiting import eventually

NEVER = float("inf")


def tokens(*sizes: int) -> Any:
    """Answers with messages of these numbers of tokens."""

    async def script(request: Any, context: Any) -> Events:
        index = 0
        for size in sizes:
            yield delta(index, *["x"] * size)
            index += size
        yield finished(index, latency_class=types_pb2.LATENCY_CLASS_STANDARD)

    return script


def fail(error: errors.HeadraceError) -> Any:
    async def script(request: Any, context: Any) -> Events:
        raise error
        yield

    return script


def work(count: int, mix: str | None = None) -> Iterator[Job]:
    prompts = (build_request("x", max_tokens=4) for _ in range(count))
    return jobs(prompts, Mix(parse_mix(mix), seed=1), None)


@contextlib.asynccontextmanager
async def caller(router: ScriptedRouter, **options: Any) -> AsyncIterator[Caller]:
    async with serving(router) as address, channel(address, None) as connection:
        yield Caller([RouterServiceStub(connection)], **{"unary": False, **options})


async def test_a_closed_loop_sends_each_job_once_in_order_and_no_more_at_a_time_than_users() -> None:
    router = ScriptedRouter(tokens(1, 2, 1))
    records: list[Record] = []
    async with caller(router) as sender:
        await closed_loop(work(50), sender, records.append, concurrency=4, until_s=NEVER)
    assert sorted(record.number for record in records) == list(range(50))
    assert sorted(int(each.request_id.rsplit("-")[-1]) for each in router.requests) == list(range(50))
    assert router.most_running <= 4
    assert {record.output_tokens for record in records} == {4}
    assert {len(record.gaps_s) for record in records} == {2}
    assert {(record.first_tokens, record.messages, record.latency_class) for record in records} == {
        (1, 4, "standard")
    }


async def test_a_closed_loop_sends_nothing_after_its_end() -> None:
    router = ScriptedRouter(tokens(1))
    async with caller(router) as sender:
        await closed_loop(work(50), sender, lambda record: None, concurrency=4, until_s=clock())
    assert router.requests == []


async def test_an_open_loop_sends_on_time_whatever_the_server_does() -> None:
    release = asyncio.Event()

    async def stuck(request: Any, context: Any) -> Events:
        await release.wait()
        yield finished(0)

    router = ScriptedRouter(stuck)
    records: list[Record] = []
    async with caller(router) as sender:
        loop = asyncio.create_task(open_loop(work(20), sender, records.append, constant(500), NEVER))
        await eventually(lambda: router.running == 20, "all are sent although none is answered")
        assert records == []
        release.set()
        await loop
    intended = sorted(record.intended_s for record in records)
    assert [round(later - earlier, 6) for earlier, later in pairwise(intended)] == [0.002] * 19
    assert all(record.intended_s <= record.sent_s <= record.end_s for record in records)


async def test_waiting_for_a_place_counts_from_the_intended_time() -> None:
    release = asyncio.Event()

    async def first_is_stuck(request: Any, context: Any) -> Events:
        await release.wait()
        yield delta(0, "x")
        yield finished(1)

    router = ScriptedRouter(first_is_stuck, tokens(1))
    records: list[Record] = []
    async with caller(router) as sender:
        loop = asyncio.create_task(open_loop(work(2), sender, records.append, constant(1000), NEVER, 1))
        await eventually(lambda: router.running == 1, "the first runs")
        due_s = clock() + 0.001
        await eventually(lambda: clock() > due_s, "the second is due")
        assert len(router.requests) == 1
        release.set()
        await loop
    first, second = sorted(records, key=lambda record: record.number)
    assert round(second.intended_s - first.intended_s, 6) == 0.001
    assert second.sent_s >= first.end_s
    assert second.send_lag_s >= first.end_s - second.intended_s
    assert second.ttft_s is not None
    assert second.ttft_s > second.send_lag_s


async def test_an_open_loop_ends_with_its_time() -> None:
    router = ScriptedRouter(tokens(1))
    records: list[Record] = []
    async with caller(router) as sender:
        await open_loop(work(1000), sender, records.append, constant(100), clock() + 0.5)
    assert 1 <= len(records) <= 50
    assert [record.number for record in sorted(records, key=lambda each: each.intended_s)] == list(
        range(len(records))
    )


async def test_classes_are_asked_for_in_their_shares() -> None:
    router = ScriptedRouter(tokens(1))
    records: list[Record] = []
    async with caller(router) as sender:
        await closed_loop(work(40, "interactive=1,batch=1"), sender, records.append, 4, NEVER)
    asked = {request.request_id: request.latency_class for request in router.requests}
    classes = {types_pb2.LATENCY_CLASS_INTERACTIVE: "interactive", types_pb2.LATENCY_CLASS_BATCH: "batch"}
    by_number = {int(name.rsplit("-")[-1]): classes[value] for name, value in asked.items()}
    assert by_number == {record.number: record.latency_class for record in records}
    assert set(by_number.values()) == {"interactive", "batch"}


async def test_refusals_are_retried_as_often_as_allowed_and_then_counted() -> None:
    busy = fail(errors.Overloaded("full", retry_s=0))
    router = ScriptedRouter(busy, busy, tokens(1))
    async with caller(router, retries=2) as sender:
        record = await sender.run(next(work(1)), clock())
    assert (record.status, record.retries, len(router.requests)) == ("OK", 2, 3)
    router = ScriptedRouter(busy)
    async with caller(router, retries=2) as sender:
        record = await sender.run(next(work(1)), clock())
    assert (record.status, record.reason, record.retries) == ("RESOURCE_EXHAUSTED", "OVERLOADED", 2)


async def test_a_stream_that_breaks_is_taken_up_and_counted_once() -> None:
    async def lost(request: Any, context: Any) -> Events:
        yield delta(0, "a", "b")
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    async def rest(request: Any, context: Any) -> Events:
        yield delta(2, "c")
        yield finished(3)

    router = ScriptedRouter(lost, rest)
    async with caller(router) as sender:
        record = await sender.run(next(work(1)), clock())
    assert (record.status, record.output_tokens, record.resumes, record.retries) == ("OK", 3, 1, 0)
    assert router.requests[1].resume.next_index == 2


async def test_a_stream_without_an_end_is_an_error() -> None:
    async def cut(request: Any, context: Any) -> Events:
        yield delta(0, "x")

    async with caller(ScriptedRouter(cut)) as sender:
        record = await sender.run(next(work(1)), clock())
    assert (record.status, record.reason, record.output_tokens) == ("DATA_LOSS", "NO_FINISHED", 1)


async def test_a_unary_call_takes_the_time_of_the_first_token_from_the_server() -> None:
    async def timed(request: Any, context: Any) -> Events:
        yield delta(0, "a", "b", "c")
        timings = types_pb2.Timings(first_token_us=1, total_us=2001)
        yield finished(3, timings=timings)

    async with caller(ScriptedRouter(timed), unary=True) as sender:
        record = await sender.run(next(work(1)), clock())
    assert record.first_s is not None
    assert record.last_s is not None
    assert record.first_s == max(record.sent_s, record.last_s - 0.002)
    assert record.output_tokens == 3


async def test_cancelling_the_load_cancels_what_runs() -> None:
    async def hang(request: Any, context: Any) -> Events:
        yield delta(0, "x")
        await asyncio.Event().wait()

    router = ScriptedRouter(hang)
    async with caller(router) as sender:
        loop = asyncio.create_task(closed_loop(work(9), sender, lambda record: None, 3, NEVER))
        await eventually(lambda: router.running == 3, "three run")
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop
        await eventually(lambda: router.cancelled == 3, "all three are cancelled")
    assert len(router.requests) == 3


async def test_the_command_writes_results_that_keep_the_contract(tmp_path: Path) -> None:
    router = ScriptedRouter(tokens(1, 3))
    async with serving(router) as address:
        load = ("-c", "2", "-n", "10", "--warm-up", "3", "--repeats", "2", "--mix", "interactive=1,batch=1")
        file = tmp_path / "x.json"
        found = await headrace("bench", "--address", address, *load, "-o", str(file), "--name", "x")
    assert found.code == 0, found.err
    assert len(router.requests) == 3 + 2 * 10
    result = Result.parse(file.read_text())
    rows = {(row.case, row.metric): row for row in result.rows}
    assert rows["Generate c=2", "requests"].value == 10
    assert rows["Generate c=2", "requests"].repeats == 2
    shares = [rows[f"Generate c=2, {name}", "requests"].value for name in ("interactive", "batch")]
    assert sum(shares) == 10
    assert rows["Generate c=2", "ttft_p50"].unit == "ms"
    assert "Generate c=2, repeat 2 of 2" in found.out


async def test_prompts_of_different_repeats_differ_and_warm_up_is_not_measured() -> None:
    router = ScriptedRouter(tokens(1))
    async with serving(router) as address:
        load = ("-c", "1", "-n", "3", "--warm-up", "3", "--repeats", "2", "-O", "json")
        found = await headrace("bench", "--address", address, *load)
    assert json.loads(found.out)["rows"][0]["value"] == 3
    prompts = [tuple(request.token_ids.ids) for request in router.requests]
    assert len(set(prompts)) == 9


async def test_another_run_asks_other_prompts_unless_the_seed_is_given() -> None:
    router = ScriptedRouter(tokens(1))
    async with serving(router) as address:
        for seed in ((), (), ("--seed", "7"), ("--seed", "7")):
            await headrace("bench", "--address", address, "-c", "1", "-n", "1", *seed)
    prompts = [tuple(request.token_ids.ids) for request in router.requests]
    assert len(set(prompts)) == 3
    assert prompts[2] == prompts[3]


async def test_answers_of_the_response_cache_are_told_apart() -> None:
    async def from_cache(request: Any, context: Any) -> Events:
        yield delta(0, "x")
        yield finished(1, cached_response=True)

    async with serving(ScriptedRouter(from_cache)) as address:
        found = await headrace("bench", "--address", address, "-c", "1", "-n", "3")
        written = await headrace("bench", "--address", address, "-c", "1", "-n", "3", "-O", "json")
    assert "3 answers came from the response cache" in found.out
    values = {row["metric"]: row["value"] for row in json.loads(written.out)["rows"]}
    assert values["cached_responses"] == 3


async def test_a_run_without_any_answer_says_why_and_exits_with_1() -> None:
    async with serving(ScriptedRouter(fail(errors.Overloaded("full", retry_s=1)))) as address:
        found = await headrace("bench", "--address", address, "-c", "1", "-n", "2")
    assert (found.code, found.err) == (1, "headrace: no request got its answer\n")
    assert "all\tRESOURCE_EXHAUSTED OVERLOADED\t2\tfull" in found.out


async def test_ctrl_c_reports_what_there_is_and_exits_with_130() -> None:
    async def until_cancelled(request: Any, context: Any) -> Events:
        if len(router.requests) > 5:
            await asyncio.Event().wait()
        yield delta(0, "x")
        yield finished(1)

    router = ScriptedRouter(until_cancelled)
    async with serving(router) as address:
        process = await start("bench", "--address", address, "-c", "1", "-O", "json")
        await eventually(lambda: len(router.requests) == 6, "the sixth hangs")
        process.send_signal(signal.SIGINT)
        out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert json.loads(out)["rows"][0]["value"] == 5


@pytest.mark.parametrize(
    "wrong",
    [("--mix", "urgent=1"), ("-z", "soon"), ("--call", "Models"), ("--prompt-tokens", "0"), ("-c", "0")],
)
async def test_a_wrong_flag_is_one_line(wrong: tuple[str, str]) -> None:
    found = await headrace("bench", "--address", "unix:/nonexistent/sock", *wrong)
    assert (found.code, found.err.count("\n"), found.out) == (2, 1, "")


def test_jobs_are_numbered_and_their_ids_unique() -> None:
    first, second = list(work(3)), list(islice(work(3), 3))
    assert [job.number for job in first] == [0, 1, 2]
    assert len({job.request.request_id for job in (*first, *second)}) == 6
