"""Sequences that decode as columns: every step, event and estimate is what it is without."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from services.worker.scheduler import launches, steady
from services.worker.scheduler.request import LatencyClass, Request, Sampling
from services.worker.scheduler.step import Capabilities, KVSpec
from tests.support.drive import Drive
from tests.support.fake_runner import VOCAB, FakeRunner

NEVER = 1 << 30


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.dtype.char, value.tolist()
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return [plain(getattr(value, each.name)) for each in fields(value)]
    return value


def request(seeded: random.Random, handle: int, now: float) -> Request:
    start = seeded.choice([0, 1, 7])
    return Request(
        handle=handle,
        prompt=np.arange(start, start + seeded.choice([1, 8, 40]), dtype=np.int32) % VOCAB,
        max_tokens=seeded.choice([1, 9, 50]),
        arrival_s=now,
        sampling=Sampling(ignore_eos=seeded.random() < 0.5, stop_token_ids=seeded.choice([(), (), (11,)])),
        latency_class=seeded.choice(list(LatencyClass)),
        kv_key=seeded.choice([b"", b"k" * 32]),
        deadline_s=seeded.choice([None, None, now + 0.3]),
        tenant=seeded.choice([b"t", b"u"]),
    )


def played(seed: int, run_ahead: int) -> tuple[list[Any], int]:
    """All that a scheduler said under some load, and how many of its steps were columns."""
    seeded = random.Random(seed)
    spec = KVSpec(block_size=4, num_blocks=seeded.choice([30, 200]), max_seqs=8, max_len=100)
    drive = Drive(FakeRunner(spec, Capabilities(run_ahead=run_ahead)))
    said: list[Any] = []
    columns = handle = 0
    for turn in range(150):
        if turn < 4 or seeded.random() < 0.05:
            for _ in range(seeded.choice([1, 3])):
                handle += 1
                drive.add(request(seeded, handle, drive.now))
        if seeded.random() < 0.02:
            drive.scheduler.abort(seeded.randint(1, handle), drive.now)
        step = drive.turn()
        columns += step is not None and drive.scheduler._residents.steady is not None
        drive.scheduler.check()
        said += [
            plain(step),
            drive.scheduler.load(),
            drive.scheduler.credits(),
            drive.scheduler.model.state(),
        ]
    return [*said, plain(tuple(drive.events))], columns


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_nobody_can_tell_whether_steps_were_columns(run_ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    for seed in range(12):
        monkeypatch.setattr(launches, "LEAST", NEVER)
        one_by_one, none = played(seed, run_ahead)
        monkeypatch.setattr(launches, "LEAST", 2)
        monkeypatch.setattr(steady, "MOST_STEPS", 3)
        as_columns, columns = played(seed, run_ahead)
        assert as_columns == one_by_one
        assert none == 0
        most = max(most, columns)
    assert most > 30, "hardly a step was"


def test_who_looks_at_a_sequence_sees_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "LEAST", 2)
    drive = Drive(FakeRunner(KVSpec(block_size=4, num_blocks=64, max_seqs=4, max_len=64)))
    for handle in (1, 2):
        prompt = np.array([1, 2, 3], np.int32)
        drive.add(Request(handle=handle, prompt=prompt, max_tokens=40, arrival_s=0.0))
    while drive.scheduler._residents.steady is None:
        drive.turn()
    for _ in range(5):
        drive.turn()
    assert drive.scheduler._residents.steady is not None
    sequence = drive.scheduler._sequences[1]
    assert drive.scheduler._residents.steady is None
    assert sequence.ids[3:].tolist() == drive.stories[1].tokens
    assert sequence.outputs == len(drive.stories[1].tokens)
    assert sequence.missing == 1
    assert sequence.last_step == len(drive.steps)
