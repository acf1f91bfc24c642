"""Tokens that wait for each other: how many, how long, and what ends their wait."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import Merge, Request, Sampling
from services.worker.scheduler.step import Capabilities, KVSpec
from tests.support.drive import Drive
from tests.support.fake_runner import VOCAB, FakeRunner

STEP_S = 0.01
ENDLESS = Sampling(ignore_eos=True)
TENANT = b"t" * 16


class Told(Drive):
    """What was told, turn by turn: output indices by handle."""

    def __init__(self, run_ahead: int = 0) -> None:
        spec = KVSpec(block_size=16, num_blocks=64, max_seqs=8, max_len=512)
        super().__init__(
            FakeRunner(spec, Capabilities(run_ahead=run_ahead)), SchedulerSettings(), step_s=STEP_S
        )

    def told(self) -> dict[int, list[int]]:
        """In the next turn."""
        self.turn()
        told: dict[int, list[int]] = {}
        for each in self.events[-1].outputs:
            told.setdefault(each.handle, []).append(each.output_index)
        return told


def request(handle: int, merge: Merge | None, max_tokens: int = 100, **fields: Any) -> Request:
    prompt = np.arange(8, 8 + 5, dtype=np.int32) % VOCAB
    fields = {"arrival_s": 0.0, "sampling": ENDLESS, "tenant": TENANT} | fields
    return Request(handle=handle, prompt=prompt, max_tokens=max_tokens, merge=merge, **fields)


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_the_first_token_is_told_at_once_and_later_ones_by_fours(run_ahead: int) -> None:
    drive = Told(run_ahead)
    drive.add(request(1, Merge(4, 1.0)))
    told = [drive.told() for _ in range(9 + run_ahead)][run_ahead:]
    assert told == [{1: [0]}, {}, {}, {}, {1: [1, 2, 3, 4]}, {}, {}, {}, {1: [5, 6, 7, 8]}]


def test_none_waits_for_longer_than_it_may_even_until_the_next_step() -> None:
    drive = Told()
    drive.add(request(1, Merge(100, 2.5 * STEP_S)))
    told = [drive.told() for _ in range(7)]
    assert told == [{1: [0]}, {}, {}, {1: [1, 2, 3]}, {}, {}, {1: [4, 5, 6]}]


def test_requests_of_one_merge_go_together_and_others_are_not_held_up() -> None:
    drive = Told()
    drive.add(request(1, Merge(4, 1.0)), request(2, None))
    drive.told()
    drive.add(request(3, Merge(4, 1.0)))
    told = [drive.told() for _ in range(4)]
    assert told == [{2: [1], 3: [0]}, {2: [2]}, {2: [3]}, {1: [1, 2, 3, 4], 2: [4], 3: [1, 2, 3]}]


def test_who_ends_is_told_whole_and_takes_nobody_along() -> None:
    drive = Told()
    drive.add(request(1, Merge(8, 1.0), max_tokens=4), request(2, Merge(8, 1.0)))
    told = [drive.told() for _ in range(4)]
    assert told == [{1: [0], 2: [0]}, {}, {}, {1: [1, 2, 3]}]
    assert [each.handle for each in drive.events[-1].terminals.finished] == [1]


def test_an_abort_and_a_drain_tell_what_was_kept_before_the_end() -> None:
    for end in (lambda drive: drive.scheduler.abort(1, drive.now), lambda drive: drive.scheduler.drain()):
        drive = Told()
        drive.add(request(1, Merge(8, 1.0)))
        for _ in range(3):
            drive.turn()
        end(drive)
        drive.listen()
        assert [each.output_index for each in drive.events[-1].outputs] == [1, 2]
        assert len(drive.stories[1].tokens) == 3


def test_work_counts_for_its_tenant_when_it_is_told() -> None:
    drive = Told()
    drive.add(request(1, Merge(3, 1.0)))
    counts = []
    for _ in range(4):
        drive.turn()
        counts.append(drive.events[-1].served.get(TENANT, (0, 0))[1])
    assert counts == [1, 0, 0, 3]


def test_a_change_of_mind_tells_what_was_kept_and_holds_from_then_on() -> None:
    drive = Told()
    drive.add(request(1, Merge(8, 1.0)))
    for _ in range(3):
        drive.turn()
    drive.scheduler.merge(1, None)
    assert [drive.told() for _ in range(2)] == [{1: [1, 2, 3]}, {1: [4]}]
    drive.scheduler.merge(1, Merge(2, 1.0))
    assert [drive.told() for _ in range(2)] == [{}, {1: [5, 6]}]


def test_nothing_is_kept_when_no_step_follows_soon() -> None:
    drive = Told()
    drive.add(request(1, Merge(8, 1.0)))
    for _ in range(3):
        drive.turn()
    assert not drive.scheduler.has_tokens
    drive.scheduler.keep_nothing()
    assert drive.scheduler.take_tokens().indices.tolist() == [1, 2]
