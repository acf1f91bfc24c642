"""Requests under a grammar in the pure scheduler: nothing is chosen before its mask is known."""

from __future__ import annotations

import numpy as np
import pytest

from services.worker.scheduler.events import Finished, Rejected, Returned
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import FinishReason, Grammar, Request, Sampling
from services.worker.scheduler.step import Capabilities, KVSpec
from tests.support.drive import Drive
from tests.support.fake_runner import EOS, VOCAB, FakeRunner, expected_output

SPEC = KVSpec(block_size=64, num_blocks=64, max_seqs=16, max_len=1024)
GRAMMAR = Grammar("regex", ".*")


def drive_of(run_ahead: int = 0, settings: SchedulerSettings | None = None, **able: bool) -> Drive:
    capabilities = Capabilities(**{"run_ahead": run_ahead, "grammar": True, **able})
    return Drive(FakeRunner(SPEC, capabilities), settings)


def request(handle: int, length: int = 100, *, bound: bool = True, **fields: object) -> Request:
    prompt = np.random.default_rng(handle).integers(8, VOCAB, length).astype(np.int32)
    made = {"max_tokens": 20, "arrival_s": 0.0, "grammar": GRAMMAR if bound else None, **fields}
    return Request(handle=handle, prompt=prompt, **made)  # type: ignore[arg-type]


def ends(drive: Drive, handle: int) -> list[FinishReason]:
    terminals = drive.stories[handle].terminals
    return [each.reason for each in terminals if isinstance(each, Finished)]


def run_masked(drive: Drive, *handles: int) -> None:
    """Runs to the end; every mask is known a turn after it was asked for."""
    for _ in range(1000):
        for handle in handles:
            drive.scheduler.mask_known(handle)
        drive.turn()
        if not drive.scheduler.has_work:
            return
    raise AssertionError("still at work")


def test_a_prompt_is_computed_but_for_its_last_token_before_the_mask_is_known() -> None:
    drive = drive_of()
    drive.add(request(1))
    for _ in range(5):
        drive.turn()
    assert [step.query_lens.tolist() for step in drive.steps] == [[99]]
    assert not any(step.samples.any() for step in drive.steps)
    assert not drive.scheduler.can_run
    drive.scheduler.mask_known(1)
    step = drive.turn()
    assert step is not None
    assert (step.query_lens.tolist(), step.samples.tolist()) == ([1], [True])
    assert [tuple(each) for each in step.constrained] == [(0, 1)]


def test_an_engine_that_cannot_split_prompts_waits_for_the_mask() -> None:
    drive = drive_of(chunked_prefill=False)
    drive.add(request(1))
    assert drive.turn() is None
    drive.scheduler.mask_known(1)
    step = drive.turn()
    assert step is not None
    assert step.query_lens.tolist() == [100]


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_each_token_waits_for_its_own_mask(run_ahead: int) -> None:
    drive = drive_of(run_ahead)
    drive.add(request(1))
    drive.scheduler.mask_known(1)
    for _ in range(6):
        drive.turn()
    assert len(drive.stories[1].tokens) == 1
    drive.scheduler.mask_known(1)
    for _ in range(6):
        drive.turn()
    assert len(drive.stories[1].tokens) == 2


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_neighbours_go_on_and_no_token_changes(run_ahead: int) -> None:
    drive = drive_of(run_ahead)
    bound, free = [request(n) for n in (1, 2, 3)], [request(n, bound=False) for n in (4, 5, 6)]
    drive.add(*bound, *free)
    for _ in range(60):
        drive.turn()
    for each in free:
        assert drive.stories[each.handle].tokens == expected_output(each, SPEC.max_len)
    run_masked(drive, 1, 2, 3)
    for each in bound:
        assert drive.stories[each.handle].tokens == expected_output(each, SPEC.max_len)
    marked = {row.handle for step in drive.steps for row in step.constrained}
    assert marked == {1, 2, 3}
    drive.scheduler.check()


def test_preempted_requests_keep_their_place_in_the_grammar() -> None:
    spec = KVSpec(block_size=64, num_blocks=6, max_seqs=16, max_len=384)
    drive = Drive(FakeRunner(spec, Capabilities(run_ahead=1, grammar=True)))
    requests = [request(n, 60, max_tokens=150, expected_output_tokens=1) for n in (1, 2, 3)]
    drive.add(*requests)
    run_masked(drive, 1, 2, 3)
    for each in requests:
        assert drive.stories[each.handle].tokens == expected_output(each, spec.max_len)
    drive.scheduler.check()


def test_a_complete_output_ends_as_if_by_the_models_own_end() -> None:
    drive = drive_of()
    drive.add(request(1))
    drive.scheduler.mask_known(1)
    drive.turn()
    drive.scheduler.grammar_ends(1, drive.now)
    drive.listen()
    assert ends(drive, 1) == [FinishReason.EOS]
    drive.scheduler.grammar_ends(1, drive.now)
    drive.scheduler.check()


@pytest.mark.parametrize("turns", [0, 1])
def test_a_grammar_that_fails_ends_its_request_with_the_reason(turns: int) -> None:
    drive = drive_of()
    drive.add(request(1), request(2, bound=False))
    for _ in range(turns):
        drive.turn()
    drive.scheduler.grammar_ends(1, drive.now, "it is wrong")
    drive.run()
    (end,) = drive.stories[1].terminals
    assert isinstance(end, Finished)
    assert (end.reason, end.message) == (FinishReason.GRAMMAR, "it is wrong")
    assert drive.stories[2].tokens
    drive.scheduler.check()


def test_what_waits_for_a_mask_can_be_cancelled_drained_and_late() -> None:
    drive = drive_of()
    drive.add(request(1), request(2, deadline_s=0.005), request(3))
    drive.scheduler.abort(1, drive.now)
    for _ in range(3):
        drive.turn()
    drive.scheduler.drain()
    drive.listen()
    assert ends(drive, 1) == [FinishReason.CANCELLED]
    assert ends(drive, 2) == [FinishReason.DEADLINE]
    assert isinstance(drive.stories[3].terminals[0], Returned)
    drive.scheduler.check()


def test_an_engine_without_grammars_rejects_them() -> None:
    drive = drive_of(grammar=False)
    drive.add(request(1))
    drive.listen()
    (end,) = drive.stories[1].terminals
    assert isinstance(end, Rejected)
    assert "grammars" in end.message


def test_a_stop_id_outside_the_vocabulary_is_no_stop_id() -> None:
    drive = drive_of()
    sampling = Sampling(stop_token_ids=(VOCAB, 4_000_000_000), min_tokens=3)
    drive.add(request(1, bound=False, sampling=sampling))
    drive.run()
    assert [step.inits[0].stop_ids.tolist() for step in drive.steps if step.inits] == [[EOS]]
