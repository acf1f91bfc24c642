"""The pool: deadlines, deaths, bounds, and that none of them touches anybody else."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from services.tokenizer.text.bounds import PoolLimits
from services.tokenizer.text.errors import (
    CannotStart,
    InvalidText,
    Overloaded,
    ProcessLost,
    TemplateFailed,
    TimedOut,
    TooLong,
)
from services.tokenizer.text.items import Conversation, Item, Outcome, PlainText
from services.tokenizer.text.pool import TextPool
from services.tokenizer.text.template import Message
from tests.support.pools import LOOP, is_alive, saying, tiny_spec
from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.support.waiting import eventually, eventually_sync

PATIENCE_S = 60.0
HELLO = tiny_tokenizer().encode("hello").ids


@pytest.fixture
async def pool() -> AsyncIterator[TextPool]:
    async with TextPool(tiny_spec(), PoolLimits(processes=1, queued_jobs=2)) as running:
        yield running


async def encode_hello(pool: TextPool) -> list[Outcome]:
    return await pool.run([PlainText("hello")], PATIENCE_S)


async def stop_the_process(pool: TextPool) -> int:
    """Freeze the only process, so that its next job runs until somebody ends it."""
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGSTOP)
    return pid


async def kill_the_busy_process(pool: TextPool, *, other_than: int) -> int:
    await eventually(
        lambda: pool.statistics().busy == 1 and pool.pids() != [other_than], "a process has the job"
    )
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGKILL)
    return pid


async def test_a_batch_comes_back_in_order_and_a_bad_item_fails_alone(pool: TextPool) -> None:
    items: list[Item] = [
        PlainText("hello"),
        PlainText("\ud800"),
        saying("hello"),
        PlainText("hello hello", max_tokens=1),
    ]
    plain, surrogate, conversation, long = await pool.run(items, PATIENCE_S)
    assert plain == HELLO
    assert isinstance(surrogate, InvalidText)
    prompt = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert conversation == tiny_tokenizer().encode(prompt).ids
    assert isinstance(long, TooLong)


async def test_a_large_text_comes_back_whole(pool: TextPool) -> None:
    text = "the wheel turns " * 20_000
    (ids,) = await pool.run([PlainText(text)], PATIENCE_S)
    assert ids == tiny_tokenizer().encode(text).ids


async def test_a_looping_template_is_killed_at_its_deadline_and_its_process_replaced(pool: TextPool) -> None:
    before = pool.pids()
    with pytest.raises(TimedOut):
        await pool.run([saying("loop")], 0.3)
    assert await encode_hello(pool) == [HELLO]
    assert pool.pids() != before
    assert pool.statistics().timeouts == 1
    await eventually(lambda: not is_alive(before[0]), "the looping process is gone")


async def test_a_template_that_takes_forever_to_compile_fails_conversations_only() -> None:
    async with TextPool(tiny_spec("{{ 3 ** 99999999 % 7 }}"), PoolLimits(processes=1)) as pool:
        assert await encode_hello(pool) == [HELLO]
        with pytest.raises(TimedOut):
            await pool.run([saying("hello")], 0.3)
        assert await encode_hello(pool) == [HELLO]


async def test_others_go_on_while_a_template_loops() -> None:
    async with TextPool(tiny_spec(), PoolLimits(processes=2)) as pool:
        looping = asyncio.create_task(pool.run([saying("loop")], PATIENCE_S))
        await eventually(lambda: pool.statistics().busy == 1, "the loop runs")
        assert [await encode_hello(pool) for _ in range(20)] == [[HELLO]] * 20
        assert not looping.done()
        looping.cancel()


async def test_long_texts_of_one_tenant_leave_a_process_to_the_short_ones_of_another() -> None:
    async with TextPool(tiny_spec(), PoolLimits(processes=2)) as pool:
        endless = Conversation((Message("user", "loop"), Message("user", "x" * 40_000)))
        long = [asyncio.create_task(pool.run([endless], PATIENCE_S, b"a")) for _ in range(3)]
        await eventually(
            lambda: pool.statistics().busy == 1 and pool.statistics().queued == 2, "one is under way"
        )
        for _ in range(5):
            assert await pool.run([PlainText("hello")], PATIENCE_S, b"b") == [HELLO]
        assert not any(each.done() for each in long)
        for each in long:
            each.cancel()


async def test_waiting_for_a_process_is_no_encoding_time() -> None:
    async with TextPool(tiny_spec(), PoolLimits(processes=1, wait_s=0.05)) as pool:
        pid = await stop_the_process(pool)
        first = asyncio.create_task(encode_hello(pool))
        await eventually(lambda: pool.statistics().busy == 1, "the process has a job")
        with pytest.raises(Overloaded):
            await pool.run([PlainText("hello")], 0.01)
        os.kill(pid, signal.SIGCONT)
        assert await first == [HELLO]
        assert (pool.statistics().queued, pool.statistics().timeouts) == (0, 0)


async def test_a_callers_tiny_deadline_costs_no_process(pool: TextPool) -> None:
    before = pool.pids()
    for _ in range(20):
        with pytest.raises(TimedOut):
            await pool.run([saying("hello")], 1e-6)
    assert await encode_hello(pool) == [HELLO]
    assert pool.pids() == before


async def test_a_job_whose_process_is_killed_is_done_by_another(pool: TextPool) -> None:
    pid = await stop_the_process(pool)
    job = asyncio.create_task(encode_hello(pool))
    await eventually(lambda: pool.statistics().busy == 1, "the job is at the process")
    os.kill(pid, signal.SIGKILL)
    assert await job == [HELLO]
    assert pool.statistics().deaths == 1


async def test_a_job_that_two_processes_die_over_is_given_up(pool: TextPool) -> None:
    job = asyncio.create_task(pool.run([saying("loop")], PATIENCE_S))
    first = await kill_the_busy_process(pool, other_than=0)
    await kill_the_busy_process(pool, other_than=first)
    with pytest.raises(ProcessLost):
        await job
    assert await encode_hello(pool) == [HELLO]


async def test_an_idle_process_that_dies_is_replaced_without_a_job(pool: TextPool) -> None:
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: pool.pids() not in ([], [pid]), "another process is there")


async def test_a_full_queue_refuses_and_a_cancelled_job_frees_its_place(pool: TextPool) -> None:
    pid = await stop_the_process(pool)
    jobs = [asyncio.create_task(encode_hello(pool))]
    await eventually(lambda: pool.statistics().busy == 1, "the process has a job")
    jobs += [asyncio.create_task(encode_hello(pool)) for _ in range(2)]
    await eventually(lambda: pool.statistics().queued == 2, "two jobs wait behind it")
    with pytest.raises(Overloaded):
        await encode_hello(pool)
    jobs[1].cancel()
    await eventually(lambda: pool.statistics().queued == 1, "the place is free")
    jobs[1] = asyncio.create_task(encode_hello(pool))
    os.kill(pid, signal.SIGCONT)
    assert await asyncio.gather(*jobs) == [[HELLO]] * 3
    assert pool.statistics().refused == 1


async def test_too_much_waiting_text_is_refused() -> None:
    async with TextPool(tiny_spec(), PoolLimits(processes=1, queued_chars=10)) as pool:
        with pytest.raises(Overloaded):
            await pool.run([PlainText("x" * 11)], PATIENCE_S)


async def test_a_template_that_takes_all_memory_fails_alone(pool: TextPool) -> None:
    grown, plain = await pool.run([saying("grow"), PlainText("hello")], PATIENCE_S)
    assert isinstance(grown, TemplateFailed)
    assert plain == HELLO


async def test_closing_fails_what_runs_and_waits_and_leaves_no_process() -> None:
    pool = TextPool(tiny_spec(), PoolLimits(processes=1))
    await pool.start()
    pid = await stop_the_process(pool)
    jobs = [asyncio.create_task(encode_hello(pool)) for _ in range(3)]
    await eventually(lambda: pool.statistics().busy == 1 and pool.statistics().queued == 2, "all are in")
    await pool.close()
    assert not is_alive(pid)
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(result) for result in results] == [Overloaded] * 3
    with pytest.raises(Overloaded):
        await encode_hello(pool)


async def test_a_tokenizer_that_cannot_be_loaded_is_one_line_at_the_start() -> None:
    broken = tiny_spec()._replace(tokenizer_json=b"{}")
    with pytest.raises(CannotStart, match=r"\A[^\n]*tokenizer\.json[^\n]*\Z"):
        await TextPool(broken, PoolLimits(processes=2)).start()


async def test_a_broken_template_fails_conversations_only() -> None:
    async with TextPool(tiny_spec("{% for %}"), PoolLimits(processes=1)) as pool:
        conversation, plain = await pool.run([saying("hi"), PlainText("hello")], PATIENCE_S)
        assert isinstance(conversation, TemplateFailed)
        assert plain == HELLO


def test_it_runs_under_uvloop() -> None:
    async def encode() -> list[Outcome]:
        async with TextPool(tiny_spec(LOOP), PoolLimits(processes=1)) as pool:
            with pytest.raises(TimedOut):
                await pool.run([saying("loop")], 0.3)
            return await encode_hello(pool)

    assert uvloop.run(encode()) == [HELLO]


ORPHAN = """
import asyncio
from services.tokenizer.text.bounds import PoolLimits
from services.tokenizer.text.pool import TextPool
from tests.support.pools import LOOP, saying, tiny_spec

async def main():
    pool = TextPool(tiny_spec(LOOP), PoolLimits(processes=2))
    await pool.start()
    print(*pool.pids(), flush=True)
    await pool.run([saying("loop")], 600.0)

asyncio.run(main())
"""


def cpu_ticks(pid: int) -> int:
    """Of user time, a hundred a second."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_processes_end_when_their_pool_is_killed_whatever_they_do() -> None:
    owner = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 2
    before = [cpu_ticks(pid) for pid in pids]
    eventually_sync(
        lambda: any(cpu_ticks(pid) > ticks + 10 for pid, ticks in zip(pids, before, strict=True)), "one loops"
    )
    owner.kill()
    owner.wait()
    eventually_sync(lambda: not any(is_alive(pid) for pid in pids), "the orphans are gone")


def test_a_process_imports_neither_grpc_nor_torch() -> None:
    check = "import sys, services.tokenizer.text.process; print(sorted({'grpc', 'torch'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", check], text=True) == "[]\n"
