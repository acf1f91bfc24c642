"""What the scheduler promises, one behaviour a test."""

from __future__ import annotations

import dataclasses
from itertools import count
from typing import Any

import numpy as np
import pytest

from services.worker.scheduler.budget import PRIOR, StepModel
from services.worker.scheduler.events import Finished, Rejected, RejectReason
from services.worker.scheduler.policy import ClassTargets, SchedulerSettings
from services.worker.scheduler.request import FinishReason, LatencyClass, Request, Sampling
from services.worker.scheduler.step import Capabilities, KVSpec, StepCost
from tests.support.drive import Drive
from tests.support.fake_runner import EOS, VOCAB, FakeRunner, expected_output, next_token

INTERACTIVE, STANDARD, BATCH = LatencyClass.INTERACTIVE, LatencyClass.STANDARD, LatencyClass.BATCH
ENDLESS = Sampling(ignore_eos=True)


def drive_of(
    *, blocks: int = 64, max_seqs: int = 8, max_len: int = 512, run_ahead: int = 0, **settings: Any
) -> Drive:
    spec = KVSpec(block_size=16, num_blocks=blocks, max_seqs=max_seqs, max_len=max_len)
    runner = FakeRunner(spec, Capabilities(run_ahead=run_ahead))
    return Drive(runner, SchedulerSettings(**settings))


def request(handle: int, length: int = 20, max_tokens: int = 8, **fields: Any) -> Request:
    fields = {"arrival_s": 0.0, "sampling": ENDLESS} | fields
    prompt = np.random.default_rng(handle).integers(8, VOCAB, length).astype(np.int32)
    return Request(handle=handle, prompt=prompt, max_tokens=max_tokens, **fields)


def end_of(drive: Drive, handle: int) -> Finished:
    (terminal,) = drive.stories[handle].terminals
    assert isinstance(terminal, Finished)
    return terminal


def slots_of(drive: Drive, handle: int) -> int | None:
    return drive.scheduler._sequences[handle].slot


def test_prefill_and_decode_share_a_step() -> None:
    drive = drive_of()
    drive.add(request(1))
    drive.turn()
    drive.add(request(2))
    step = drive.turn()
    assert step is not None
    assert sorted(step.query_lens.tolist()) == [1, 20]


def test_tokens_alone_can_be_taken_and_all_else_waits_for_who_takes_everything() -> None:
    drive = drive_of()
    scheduler = drive.scheduler
    drive.listen = lambda: None  # type: ignore[method-assign]
    drive.add(request(1, max_tokens=4, tenant=b"t" * 16))
    drive.turn()
    assert scheduler.only_tokens
    drive.add(request(2, max_tokens=1))
    assert not scheduler.only_tokens, "one waits for its first step"
    assert len(scheduler.take_tokens()) == 1
    drive.turn()
    assert not scheduler.only_tokens, "one has ended"
    events = scheduler.take_events()
    assert [each.handle for each in events.outputs] == [1, 2]
    assert events.served[b"t" * 16] == (20, 2), "also for tokens that were taken before"
    drive.turn()
    assert scheduler.only_tokens
    assert scheduler.take_tokens().indices.tolist() == [2]
    assert not scheduler.has_news


def test_long_prompts_are_cut_into_chunks_and_decodes_go_on_beside_them() -> None:
    drive = drive_of(max_chunk=32, min_chunk=8)
    drive.add(request(1, max_tokens=50))
    drive.turn()
    drive.add(request(2, length=200))
    for _ in range(6):
        step = drive.turn()
        assert step is not None
        assert 1 in step.query_lens.tolist()
        assert len(step.tokens) <= 33
    assert len(drive.stories[1].tokens) == 7


def test_max_tokens_is_known_ahead_so_that_no_step_is_wasted() -> None:
    drive = drive_of(run_ahead=1)
    drive.add(request(1, max_tokens=4))
    drive.run()
    assert len(drive.steps) == 4
    assert end_of(drive, 1).reason is FinishReason.LENGTH


def test_output_is_clipped_at_the_end_of_the_context() -> None:
    drive = drive_of(max_len=64)
    drive.add(request(1, length=60, max_tokens=1000))
    drive.run()
    assert end_of(drive, 1).reason is FinishReason.LENGTH
    assert len(drive.stories[1].tokens) == 4


def test_the_models_end_and_stop_ids_end_a_sequence() -> None:
    drive = drive_of()
    ids = request(1).prompt.tolist()
    first = next_token(ids)
    second = next_token([*ids, first])
    drive.add(request(1, sampling=Sampling(stop_token_ids=(second,), ignore_eos=True)))
    prompts = (np.array([8, high, low], np.int32) for high in range(8, VOCAB) for low in range(8, VOCAB))
    prompt = next(prompt for prompt in prompts if next_token(prompt.tolist()) == EOS)
    drive.add(Request(handle=2, prompt=prompt, max_tokens=9, arrival_s=0.0))
    drive.run()
    assert end_of(drive, 1).reason is FinishReason.STOP_TOKEN
    assert end_of(drive, 1).stop_token_id == second == drive.stories[1].tokens[-1]
    assert end_of(drive, 2).reason is FinishReason.EOS
    assert drive.stories[2].tokens == [EOS]


def test_stop_ids_that_no_vocabulary_has_do_not_reach_the_runner() -> None:
    drive = drive_of()
    drive.add(request(1, max_tokens=4, sampling=Sampling(stop_token_ids=(-1, -9999, 2**40), min_tokens=3)))
    drive.run()
    inits = [init for step in drive.steps for init in step.inits]
    assert [init.stop_ids.tolist() for init in inits] == [[EOS]]


def test_an_aborted_request_is_in_no_later_step_and_its_blocks_come_back() -> None:
    drive = drive_of(run_ahead=1)
    drive.add(request(1, max_tokens=100), request(2, max_tokens=100))
    for _ in range(3):
        drive.turn()
    slot = slots_of(drive, 1)
    drive.scheduler.abort(1, drive.now)
    drive.scheduler.abort(1, drive.now)
    step = drive.turn()
    assert step is not None
    assert slot not in step.slots.tolist()
    assert end_of(drive, 1).reason is FinishReason.CANCELLED
    held = drive.scheduler.load().blocks_held
    assert held == len(drive.scheduler._sequences[2].blocks)


def test_a_hundred_thousand_aborts_leak_nothing() -> None:
    drive = drive_of(blocks=64, max_seqs=16)
    random = np.random.default_rng(1)
    handle = 0
    while handle < 100_000:
        for _ in range(500):
            handle += 1
            drive.add(request(handle, length=int(random.integers(1, 60))))
        for _ in range(int(random.integers(0, 3))):
            drive.turn()
        for victim in random.permutation(np.arange(handle - 499, handle + 1)).tolist():
            drive.scheduler.abort(victim, drive.now)
        drive.turn()
        assert not drive.scheduler.has_work
        drive.scheduler.check()
    assert drive.scheduler.load().blocks_held == 0


def test_a_passed_deadline_ends_a_request() -> None:
    drive = drive_of(max_seqs=1)
    drive.add(request(1, max_tokens=100, deadline_s=0.05), request(2, deadline_s=0.02))
    drive.run()
    assert end_of(drive, 1).reason is FinishReason.DEADLINE
    assert end_of(drive, 2).reason is FinishReason.DEADLINE
    assert 0 < len(drive.stories[1].tokens) < 10


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (request(1, length=512), RejectReason.TOO_LONG),
        (request(1, length=0), RejectReason.INVALID),
        (request(1, max_tokens=0), RejectReason.INVALID),
        (request(1, sampling=Sampling(temperature=float("nan"))), RejectReason.INVALID),
        (request(1, sampling=Sampling(temperature=-1.0)), RejectReason.INVALID),
        (request(1, sampling=Sampling(top_p=1.5)), RejectReason.INVALID),
        (request(1, sampling=Sampling(logprobs=21)), RejectReason.INVALID),
        (request(1, delivered=np.array([VOCAB], np.int32)), RejectReason.INVALID),
        (request(1, kv_key=b"k" * 65), RejectReason.INVALID),
        (request(1, public_kv_key=b"k" * 32, public_prefix_tokens=17), RejectReason.INVALID),
    ],
)
def test_requests_that_can_never_run_are_rejected_alone(bad: Request, reason: RejectReason) -> None:
    drive = drive_of()
    drive.add(bad, request(2))
    drive.run()
    (terminal,) = drive.stories[1].terminals
    assert isinstance(terminal, Rejected)
    assert terminal.reason is reason
    assert end_of(drive, 2).reason is FinishReason.LENGTH


def test_a_resumed_request_that_was_complete_ends_at_once() -> None:
    whole = expected_output(request(1), 512)
    drive = drive_of()
    drive.add(request(1, delivered=np.array(whole, np.int32)))
    drive.listen()
    assert end_of(drive, 1).reason is FinishReason.LENGTH
    assert not drive.scheduler.has_work


def test_an_interactive_request_takes_the_slot_of_a_batch_request() -> None:
    """vLLM #40004: sequences, not blocks, are the limit."""
    drive = drive_of(max_seqs=2)
    drive.add(
        request(1, max_tokens=100, latency_class=BATCH), request(2, max_tokens=100, latency_class=BATCH)
    )
    for _ in range(5):
        drive.turn()
    drive.add(request(3, latency_class=INTERACTIVE))
    step = drive.turn()
    assert step is not None
    assert slots_of(drive, 3) in step.slots.tolist()
    drive.run()
    assert end_of(drive, 1).usage.preemptions + end_of(drive, 2).usage.preemptions == 1


def test_an_interactive_request_takes_the_blocks_of_the_batch_request_that_lost_least() -> None:
    drive = drive_of(blocks=16, max_seqs=8, batch_kv_share=1.0, batch_kv_share_quiet=1.0)
    drive.add(request(1, length=100, latency_class=BATCH, expected_output_tokens=8))
    drive.turn()
    drive.add(request(2, length=60, latency_class=BATCH, expected_output_tokens=8))
    drive.turn()
    drive.add(request(3, length=90, latency_class=INTERACTIVE, expected_output_tokens=8))
    drive.run()
    assert end_of(drive, 1).usage.preemptions == 0
    assert end_of(drive, 2).usage.preemptions == 1


def test_a_victim_keeps_its_place_and_its_sealed_blocks() -> None:
    drive = drive_of(max_seqs=1)
    drive.add(request(1, length=50, max_tokens=30, latency_class=BATCH, kv_key=b"k" * 32))
    for _ in range(4):
        drive.turn()
    drive.add(request(2, latency_class=BATCH), request(3, max_tokens=2, latency_class=INTERACTIVE))
    drive.run()
    first, second = end_of(drive, 1), end_of(drive, 2)
    assert first.usage.preemptions == 1
    assert first.usage.recomputed_tokens < 16
    assert first.timings.decode_s < 0.40
    assert second.timings.queue_s > 0.30


def test_a_victim_is_spared_after_three_preemptions() -> None:
    drive = drive_of(max_seqs=1)
    drive.add(request(1, max_tokens=40, latency_class=BATCH))
    for handle in range(2, 12):
        drive.turn()
        drive.turn()
        drive.add(request(handle, max_tokens=1, latency_class=INTERACTIVE))
    drive.run()
    assert end_of(drive, 1).usage.preemptions == 3


def test_running_out_of_blocks_never_thrashes() -> None:
    """vLLM #41951, #51574: every preemption must let somebody older finish."""
    drive = drive_of(blocks=12, max_seqs=8)
    for handle in range(1, 9):
        drive.add(request(handle, length=16, max_tokens=100, expected_output_tokens=1))
    drive.run(max_turns=900)
    preemptions = sum(end_of(drive, handle).usage.preemptions for handle in range(1, 9))
    recomputed = sum(end_of(drive, handle).usage.recomputed_tokens for handle in range(1, 9))
    assert 0 < preemptions <= 24
    assert recomputed < 8 * 116


def test_batch_waits_while_interactive_prompts_are_computed() -> None:
    drive = drive_of(max_chunk=16, min_chunk=16)
    drive.add(request(1, max_tokens=50, latency_class=BATCH))
    drive.turn()
    drive.turn()
    drive.add(request(2, length=64, max_tokens=1, latency_class=INTERACTIVE))
    for _ in range(4):
        step = drive.turn()
        assert step is not None
        assert len(step.slots) == 1
    drive.run()
    assert len(drive.stories[1].tokens) == 50


def test_batch_prompts_wait_behind_the_gate_of_busy_decodes() -> None:
    slow = ClassTargets(ttft_s=1.0, tpot_s=0.011)
    targets = {**SchedulerSettings().targets, INTERACTIVE: slow}
    drive = drive_of(targets=targets)
    drive.add(request(1, max_tokens=40, latency_class=INTERACTIVE))
    for _ in range(5):
        drive.turn()
    drive.add(request(2, latency_class=BATCH))
    while drive.stories[1].terminals == []:
        assert drive.stories[2].tokens == []
        drive.turn()
    drive.run()
    assert end_of(drive, 2).reason is FinishReason.LENGTH


def test_a_starving_batch_request_rises_past_interactive_work() -> None:
    drive = drive_of(max_seqs=1, batch_ageing_s=0.5)
    drive.add(request(1, latency_class=BATCH, max_tokens=4))
    handle = 1
    while not drive.stories[1].terminals:
        handle += 1
        drive.add(request(handle, latency_class=INTERACTIVE, arrival_s=drive.now))
        drive.turn()
        assert drive.now < 1.5
    assert drive.now > 0.9


def test_earlier_deadlines_go_first_within_a_class() -> None:
    drive = drive_of(max_seqs=1)
    drive.add(request(1), request(2, deadline_s=9.0), request(3, deadline_s=1.0))
    drive.run()
    queues = {handle: end_of(drive, handle).timings.queue_s for handle in (1, 2, 3)}
    assert queues[3] < queues[1] < queues[2]


def test_admission_counts_with_expected_output_not_with_max_tokens() -> None:
    drive = drive_of(blocks=16)
    for handle in range(1, 5):
        drive.add(request(handle, length=16, max_tokens=400, expected_output_tokens=8))
    step = drive.turn()
    assert step is not None
    assert len(step.slots) == 4


def test_timings_add_up() -> None:
    drive = drive_of(max_seqs=1)
    drive.add(request(1), request(2))
    drive.run()
    for handle in (1, 2):
        timings = end_of(drive, handle).timings
        assert timings.prefill_s == pytest.approx(0.01)
        assert timings.decode_s == pytest.approx(0.07)
    assert end_of(drive, 2).timings.queue_s == pytest.approx(0.08)


def test_served_tokens_are_counted_by_tenant_without_what_was_cached_or_recomputed() -> None:
    drive = drive_of(max_seqs=1)
    fields = {"kv_key": b"k" * 32, "tenant": b"t"}
    drive.add(request(1, length=40, latency_class=BATCH, **fields))
    for _ in range(3):
        drive.turn()
    drive.add(request(2, length=10, max_tokens=1, tenant=b"u"))
    drive.run()
    again = dataclasses.replace(request(1, length=40, max_tokens=1, **fields), handle=3)
    drive.add(again)
    drive.run()
    served = [events.served for events in drive.events]
    totals = {
        tenant: [sum(each[tenant][part] for each in served if tenant in each) for part in (0, 1)]
        for tenant in (b"t", b"u")
    }
    assert totals == {b"t": [40 + 8, 9], b"u": [10, 1]}


def test_foreground_credit_has_what_batch_work_holds() -> None:
    drive = drive_of(max_seqs=4)
    empty = drive.scheduler.credits().foreground
    for handle in (1, 2):
        drive.add(request(handle, length=100, latency_class=LatencyClass.BATCH))
    drive.turn()
    drive.turn()
    drive.add(request(3, length=100, latency_class=LatencyClass.BATCH))
    filled = drive.scheduler.credits()
    assert filled.slots < 4
    assert filled.foreground.slots == empty.slots == 4
    assert filled.foreground.blocks == empty.blocks
    load = drive.scheduler.load()
    assert (load.batch_requests, load.running + load.waiting) == (3, 3)
    assert load.batch_uncached_tokens == load.waiting_uncached_tokens
    drive.add(request(4, length=100))
    assert drive.scheduler.credits().foreground.slots == 3


def lengthy_drive() -> Drive:
    """Steps of 128 prompt tokens; prompts of 2,000 take four times the target of a first token."""
    target_s = StepModel(PRIOR).predict(StepCost(1.0, 2000.0, 2e6, 0.0, 0.0)) / 4
    targets = dict(SchedulerSettings().targets) | {INTERACTIVE: ClassTargets(ttft_s=target_s, tpot_s=0.04)}
    return drive_of(blocks=1024, max_len=8192, max_chunk=128, targets=targets)


def test_a_lengthy_prompt_keeps_no_short_one_waiting() -> None:
    drive = lengthy_drive()
    drive.add(request(1, length=2000, latency_class=INTERACTIVE))
    drive.turn()
    assert drive.scheduler._sequences[1].lengthy
    drive.add(request(2, latency_class=INTERACTIVE))
    drive.turn()
    assert len(drive.stories[2].tokens) == 1
    assert not drive.stories[1].tokens


@pytest.mark.parametrize("latency_class", [INTERACTIVE, STANDARD])
def test_whether_a_prompt_is_lengthy_is_not_a_matter_of_its_class(latency_class: LatencyClass) -> None:
    drive = lengthy_drive()
    drive.add(request(1, length=2000, latency_class=latency_class))
    drive.add(request(2, length=2000, latency_class=latency_class, ttft_target_s=60.0))
    assert drive.scheduler._sequences[1].lengthy
    assert not drive.scheduler._sequences[2].lengthy, "its caller means all of its kind"


def test_short_prompts_without_end_leave_a_lengthy_one_its_part() -> None:
    drive = lengthy_drive()
    drive.add(request(1, length=2000, latency_class=INTERACTIVE))
    handles = count(2)
    while not drive.stories[1].tokens:
        for _ in range(3):
            drive.add(request(next(handles), length=60, max_tokens=1, latency_class=INTERACTIVE))
        drive.turn()
    assert len(drive.steps) <= 2.5 * 2000 / 128, "about half of what there was time for"


def test_credit_stays_open_beside_a_lengthy_prompt() -> None:
    drive = lengthy_drive()
    empty = drive.scheduler.credits().prefill_tokens
    drive.add(request(1, length=2000, latency_class=INTERACTIVE))
    drive.turn()
    assert 0 < empty // 3 <= drive.scheduler.credits().prefill_tokens
    for handle in range(2, 6):
        drive.add(request(handle, length=empty // 4, latency_class=INTERACTIVE))
    assert drive.scheduler.credits().prefill_tokens == 0


def test_what_credit_allows_is_admitted_and_nothing_more() -> None:
    drive, length, output = drive_of(blocks=40), 64, 128
    while drive.scheduler.credits().blocks >= (length + output) // 16:
        drive.add(request(len(drive.stories) + 1, length, output, expected_output_tokens=output))
        drive.turn()
        assert drive.scheduler.load().waiting == 0, "credit said that there is room"
    drive.add(request(9, length, output, expected_output_tokens=output))
    drive.turn()
    assert drive.scheduler.load().waiting == 1, "what residents are expected to write is not to be had"


def test_credits_shrink_with_what_waits() -> None:
    drive = drive_of(max_seqs=4)
    before = drive.scheduler.credits()
    for handle in range(1, 4):
        drive.add(request(handle, length=100, session=handle % 2))
    after = drive.scheduler.credits()
    assert (before.slots, after.slots) == (4, 1)
    assert after.prefill_tokens == before.prefill_tokens - 300
    assert after.blocks < before.blocks
    assert after.waiting_by_session == {0: 100, 1: 200}
    assert before.waiting_by_session == {}


def test_drain_returns_everything_and_frees_its_blocks() -> None:
    drive = drive_of(run_ahead=1, max_seqs=1)
    drive.add(request(1, max_tokens=100), request(2))
    for _ in range(4):
        drive.turn()
    drive.scheduler.drain()
    drive.run()
    drive.add(request(3))
    drive.listen()
    assert [len(drive.stories[handle].terminals) for handle in (1, 2, 3)] == [1, 1, 1]
    drive.scheduler.check()
    assert drive.scheduler.load().blocks_held == 0
