"""The real worker service over a fake model, against a scripted router on real gRPC."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from headrace.v1 import session_pb2 as pb
from headrace.v1 import types_pb2

from services.common.conduct import BURST
from tests.support.gated_engine import SPEC, output_of
from tests.support.session_router import TAG, Record, RouterSession, SessionRouter
from tests.support.waiting import eventually
from tests.support.worker_service import RunningWorker, running_worker

ENDLESS = types_pb2.SamplingParams(ignore_eos=True)


def prompt_of(number: int, length: int = 5) -> list[int]:
    return [(number * 7 + each) % 50 for each in range(length)]


def submit(session: RouterSession, prompt: list[int], count: int, **fields: Any) -> Record:
    return session.submit(prompt, max_tokens=count, sampling=ENDLESS, **fields)


async def whole(record: Record, prompt: list[int], count: int) -> None:
    """The record ends with exactly the tokens that the model gives."""
    await record.ended()
    assert record.end is not None
    assert record.end.reason == pb.END_REASON_LENGTH
    assert record.tokens == output_of(prompt, count)[record.first_index :]


class TestAttaching:
    async def test_hello_describes_engine_and_model(self, session: RouterSession) -> None:
        hello = session.hello
        assert (hello.worker_id, hello.protocol_version, hello.model) == ("worker-1", 1, "fake")
        assert (hello.kv_spec.blocks, hello.kv_spec.max_tokens) == (SPEC.num_blocks, SPEC.max_len)
        assert set(hello.capabilities) == {"logprobs", "prefix_cache", "deterministic"}
        assert not hello.held
        assert session.credit.sequences > 0
        assert session.step_models

    async def test_it_serves_only_while_a_router_has_it(
        self, worker: RunningWorker, router: SessionRouter
    ) -> None:
        await worker.until_serving(True)
        await router.stop()
        await worker.until_serving(False)
        await router.start()
        await router.attached(after=1)
        await worker.until_serving(True)

    async def test_it_waits_for_a_router_that_comes_later(self, tmp_path: Path) -> None:
        late = SessionRouter()
        await late.start()
        await late.stop()  # its port is known, nobody listens there
        async with running_worker(tmp_path, late.address) as worker:
            await eventually(
                lambda: worker.value("headrace_worker_session_failures_total", kind="unreachable") >= 2,
                "two attempts",
            )
            assert not await worker.is_serving()
            async with late:
                await late.attached()
                await worker.until_serving(True)

    async def test_a_worker_with_another_secret_is_refused_by_the_routers_proof(self, tmp_path: Path) -> None:
        async with (
            SessionRouter() as router,
            running_worker(tmp_path, router.address, secret=b"o" * 32) as worker,
        ):
            await eventually(
                lambda: worker.value("headrace_worker_session_failures_total", kind="false_router") >= 2,
                "two refusals",
            )
            assert not router.sessions
            assert not await worker.is_serving()

    async def test_a_false_router_gets_no_proof_and_no_session(self, tmp_path: Path) -> None:
        async with SessionRouter() as router, running_worker(tmp_path, router.address) as worker:
            session = await router.attached()
            router.lie = True
            session.break_off()
            await eventually(
                lambda: worker.value("headrace_worker_session_failures_total", kind="false_router") >= 1,
                "the lie is noticed",
            )
            router.lie = False
            await router.attached(after=1)

    async def test_heartbeats_come_without_work(self, session: RouterSession) -> None:
        before = len(session.frames)
        await eventually(lambda: len(session.frames) >= before + 3, "three heartbeats")
        assert not session.frames[-1].progress.has_work


class TestServing:
    async def test_tokens_come_in_order_and_once(self, session: RouterSession) -> None:
        prompt = prompt_of(1)
        record = submit(session, prompt, 40)
        await whole(record, prompt, 40)
        assert record.end is not None
        assert record.end.usage.prompt_tokens == 5
        assert record.end.usage.output_tokens == 40
        await eventually(lambda: session.served.get(TAG) == (5, 40), "the tenant's service is told")

    async def test_sixteen_at_once(self, session: RouterSession) -> None:
        prompts = [prompt_of(each, 3 + each) for each in range(16)]
        records = [submit(session, prompt, 20 + len(prompt)) for prompt in prompts]
        for record, prompt in zip(records, prompts, strict=True):
            await whole(record, prompt, 20 + len(prompt))
        await session.idle()

    async def test_a_long_prompt_comes_in_pieces(self, session: RouterSession) -> None:
        prompt = prompt_of(3, 900)
        record, first = session.prepare(prompt, max_tokens=10, sampling=ENDLESS)
        del first.prompt_ids[300:]
        session.send(submits=[first])
        for offset in (300, 600):
            piece = pb.PromptPiece(
                slot=first.slot, attempt=1, offset=offset, ids=prompt[offset : offset + 300]
            )
            session.send(prompt_pieces=[piece])
        await whole(record, prompt, 10)

    async def test_a_later_attempt_goes_on_after_what_was_delivered(self, session: RouterSession) -> None:
        prompt = prompt_of(4)
        delivered = output_of(prompt, 17)
        record = submit(session, prompt, 40, attempt=2, delivered_ids=delivered)
        await whole(record, prompt, 40)
        assert record.first_index == 17

    async def test_a_cancel_ends_it_and_frees_everything(
        self, worker: RunningWorker, session: RouterSession
    ) -> None:
        worker.gate.allow(10)
        cancelled, other = submit(session, prompt_of(1), 500), submit(session, prompt_of(2), 30)
        await cancelled.has(2)
        session.cancel(cancelled)
        worker.gate.open()
        await cancelled.ended()
        assert cancelled.end is not None
        assert cancelled.end.reason == pb.END_REASON_CANCELLED
        assert len(cancelled.tokens) < 500
        await whole(other, prompt_of(2), 30)
        await session.idle()

    async def test_a_deadline_ends_it(self, worker: RunningWorker, session: RouterSession) -> None:
        worker.gate.delay_s = 0.01
        record = submit(session, prompt_of(1), 1000, remaining_ms=300)
        await record.ended()
        assert record.end is not None
        assert record.end.reason == pb.END_REASON_DEADLINE
        assert len(record.tokens) < 1000
        await session.idle()

    async def test_load_is_exact_after_an_acknowledged_command(
        self, worker: RunningWorker, session: RouterSession
    ) -> None:
        worker.gate.delay_s = 0.02
        records = [submit(session, prompt_of(each), 500) for each in range(3)]
        number = session.send()
        await eventually(lambda: session.frames[-1].acknowledged_command >= number, "acknowledged")
        acknowledged = next(frame for frame in session.frames if frame.acknowledged_command >= number)
        assert acknowledged.load.running + acknowledged.load.waiting == 3
        assert acknowledged.credit.sequences == SPEC.max_seqs - 3
        for record in records:
            session.cancel(record)
            await record.ended()

    async def test_a_hung_step_shows_in_the_heartbeats(
        self, worker: RunningWorker, session: RouterSession
    ) -> None:
        worker.gate.allow(3)
        record = submit(session, prompt_of(1), 10)
        await eventually(
            lambda: (
                session.frames[-1].progress.has_work
                and session.frames[-1].progress.since_last_step_us > 500_000
            ),
            "no progress is told",
        )
        worker.gate.open()
        await whole(record, prompt_of(1), 10)

    async def test_nonsense_ends_the_session_and_nothing_else(
        self, worker: RunningWorker, router: SessionRouter, session: RouterSession
    ) -> None:
        worker.gate.allow(5)
        record = submit(session, prompt_of(1), 50)
        await record.has(1)
        for slot in range(BURST + 5):
            session.send(cancels=[pb.Cancel(slot=slot + 10_000, attempt=1)])
        await router.attached(after=1)
        assert worker.value("headrace_worker_session_failures_total", kind="misbehaved") == 1
        worker.gate.open()
        await whole(record, prompt_of(1), 50)


async def test_a_slow_reader_gets_merged_frames_and_the_engine_does_not_wait(tmp_path: Path) -> None:
    async with (
        SessionRouter(window_bytes=1 << 16) as router,
        running_worker(tmp_path, router.address) as worker,
    ):
        session = await router.attached()
        session.reading.clear()
        prompts = [prompt_of(each) for each in range(24)]
        records = [submit(session, prompt, 1000) for prompt in prompts]
        await eventually(
            lambda: worker.value("headrace_worker_ends_total", reason="length") == 24, "all is computed", 120
        )
        steps = worker.gate.steps
        session.reading.set()
        for record, prompt in zip(records, prompts, strict=True):
            await whole(record, prompt, 1000)
        assert sum(bool(frame.updates) for frame in session.frames) < steps
        assert max(len(update.token_ids) for frame in session.frames for update in frame.updates) > 10


class TestBrokenSessions:
    async def test_a_broken_session_goes_on_without_a_lost_or_doubled_token(
        self, worker: RunningWorker, router: SessionRouter, session: RouterSession
    ) -> None:
        worker.gate.allow(20)
        records = [submit(session, prompt_of(each), 60) for each in range(4)]
        await records[0].has(3)
        session.break_off()
        worker.gate.allow(20)
        second = await router.attached(after=1)
        assert {(each.request_id, each.attempt) for each in second.hello.held} == {
            (record.request_id, 1) for record in records
        }
        worker.gate.open()
        for number, record in enumerate(records):
            await whole(record, prompt_of(number), 60)
        await second.idle()

    async def test_sessions_that_break_again_and_again_lose_nothing(
        self, worker: RunningWorker, router: SessionRouter, session: RouterSession
    ) -> None:
        worker.gate.delay_s = 0.002
        chance = random.Random(7)
        prompts = [prompt_of(each) for each in range(12)]
        records = [submit(session, prompt, 400) for prompt in prompts]
        for turn in range(6):
            current = await router.attached(after=turn)
            current.acknowledging = turn % 2 == 0
            worker.gate.allow(40)  # more than the progress, and in all turns less than the whole
            progressed = sum(len(record.tokens) for record in records) + chance.randrange(50, 400)
            await eventually(
                lambda goal=progressed: sum(len(each.tokens) for each in records) >= goal, "progress", 60
            )
            current.break_off()
        worker.gate.open()
        for record, prompt in zip(records, prompts, strict=True):
            await whole(record, prompt, 400)

    async def test_a_router_that_restarts_finds_the_requests_it_had(
        self, worker: RunningWorker, router: SessionRouter, session: RouterSession
    ) -> None:
        worker.gate.allow(10)
        record = submit(session, prompt_of(1), 50)
        await record.has(2)
        await router.stop()
        worker.gate.open()
        await eventually(
            lambda: worker.value("headrace_worker_ends_total", reason="length") == 1, "it ends unheard"
        )
        await router.start()
        await whole(record, prompt_of(1), 50)

    async def test_after_the_grace_requests_are_aborted_and_all_blocks_are_free(self, tmp_path: Path) -> None:
        async with (
            SessionRouter(grace_ms=100) as router,
            running_worker(tmp_path, router.address) as worker,
        ):
            session = await router.attached()
            worker.gate.delay_s = 0.05
            records = [submit(session, prompt_of(each), 1000) for each in range(3)]
            await records[2].has(2)
            await router.stop()
            await eventually(
                lambda: worker.value("headrace_worker_ends_total", reason="cancelled") == 3, "all aborted"
            )
            assert worker.value("headrace_worker_abandoned_total") == 3
            await router.start()
            after = await router.attached(after=1)
            assert not after.hello.held
            await after.idle()

    async def test_requests_that_the_router_does_not_want_back_are_aborted(
        self, worker: RunningWorker, router: SessionRouter, session: RouterSession
    ) -> None:
        worker.gate.delay_s = 0.05
        record = submit(session, prompt_of(1), 1000)
        await record.has(2)
        router.resuming = False
        session.break_off()
        second = await router.attached(after=1)
        assert len(second.hello.held) == 1
        await second.idle()
        assert worker.value("headrace_worker_ends_total", reason="cancelled") == 1


class TestDraining:
    async def test_what_runs_finishes_and_what_is_new_comes_back(
        self, worker: RunningWorker, session: RouterSession
    ) -> None:
        worker.gate.allow(5)
        running = submit(session, prompt_of(1), 30)
        await running.has(1)
        drained = asyncio.create_task(worker.drain())
        await eventually(lambda: session.draining, "draining is told")
        late = submit(session, prompt_of(2), 30)
        await late.ended()
        assert late.returned is not None
        assert late.returned.reason == pb.RETURN_REASON_DRAINING
        assert not await worker.is_serving()
        worker.gate.open()
        await whole(running, prompt_of(1), 30)
        await drained
        await eventually(lambda: session.half_closed, "the worker took its leave")

    async def test_what_does_not_finish_is_given_back_with_its_index(self, tmp_path: Path) -> None:
        async with (
            SessionRouter() as router,
            running_worker(tmp_path, router.address, drain_timeout_s=2.0) as worker,
        ):
            session = await router.attached()
            worker.gate.delay_s = 0.05
            record = submit(session, prompt_of(1), 1000)
            await record.has(2)
            await worker.drain()
            await record.ended()
            assert record.returned is not None
            assert record.returned.reason == pb.RETURN_REASON_DRAINING
            assert record.returned.next_index == len(record.tokens)
            assert record.tokens == output_of(prompt_of(1), len(record.tokens))
            await eventually(lambda: session.half_closed, "the worker took its leave")

    async def test_a_router_can_send_it_away(self, worker: RunningWorker, session: RouterSession) -> None:
        session.send(drain=pb.DrainRequest(grace_ms=1000))
        await eventually(lambda: worker.left, "it is asked to leave")


class TestTwoRouters:
    async def test_siblings_are_attached_and_credit_is_split(self, tmp_path: Path) -> None:
        async with SessionRouter(router_id="one") as one, SessionRouter(router_id="two") as two:
            one.siblings = two.siblings = [one.address, two.address]
            async with running_worker(tmp_path, one.address) as worker:
                first, second = await one.attached(), await two.attached()
                await eventually(
                    lambda: (
                        first.credit.sequences + second.credit.sequences == SPEC.max_seqs
                        and min(first.credit.sequences, second.credit.sequences) > 0
                    ),
                    "the window is shared",
                )
                first.send(demand=pb.Demand(prefill_tokens=10_000, requests=100))
                await eventually(lambda: first.credit.sequences >= 28, "demand is served")
                assert second.credit.sequences >= 1
                here, there = submit(first, prompt_of(1), 50), submit(second, prompt_of(2), 50)
                await whole(here, prompt_of(1), 50)
                await whole(there, prompt_of(2), 50)
                assert worker.value("headrace_worker_sessions") == 2

    async def test_a_router_that_dies_disturbs_no_other(self, tmp_path: Path) -> None:
        async with (
            SessionRouter(router_id="one") as one,
            SessionRouter(router_id="two") as two,
            running_worker(tmp_path, one.address, two.address) as worker,
        ):
            first, second = await one.attached(), await two.attached()
            await eventually(lambda: first.credit.sequences and second.credit.sequences, "both have credit")
            worker.gate.delay_s = 0.002
            submit(first, prompt_of(1), 300)
            survivor = submit(second, prompt_of(2), 300)
            await survivor.has(5)
            await one.stop()
            await whole(survivor, prompt_of(2), 300)
            assert await worker.is_serving()


@pytest.mark.parametrize("count", [40])
async def test_without_credit_requests_come_back_and_nothing_is_lost(
    worker: RunningWorker, session: RouterSession, count: int
) -> None:
    """A router that ignores credit: what is beyond the window comes back at once, the rest is served."""
    worker.gate.allow(1)
    records = [submit(session, prompt_of(each), 5) for each in range(count)]
    await eventually(
        lambda: sum(record.returned is not None for record in records) == count - SPEC.max_seqs, "returned"
    )
    worker.gate.open()
    for number, record in enumerate(records):
        await record.ended()
        if record.returned is None:
            await whole(record, prompt_of(number), 5)
        else:
            assert record.returned.reason == pb.RETURN_REASON_NO_CREDIT
            assert record.returned.retry_ms > 0
