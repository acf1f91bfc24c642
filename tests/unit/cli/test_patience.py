"""How long a command waits, and what it says meanwhile."""

from __future__ import annotations

import grpc
import pytest
from headrace.errors import Exhausted, Unavailable

from services.cli.errors import CliError
from services.cli.patience import Patience

MISSING = Unavailable("no worker is there", code=grpc.StatusCode.UNAVAILABLE, reason="NO_WORKER", retry_s=1)
BUSY = Exhausted("too much waits", code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_s=1)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_worker_that_never_comes_is_waited_for_no_longer_than_so() -> None:
    clock = Clock()
    patience = Patience(60, clock)
    for clock.now_s in (0.0, 30.0, 59.0):
        patience(MISSING, 1.0)
    clock.now_s = 60.0
    with pytest.raises(CliError, match=r"no worker is there .*for 60 s: `headrace workers` lists"):
        patience(MISSING, 1.0)


def test_what_else_is_waited_for_has_no_end() -> None:
    clock = Clock()
    patience = Patience(60, clock)
    for clock.now_s in (0.0, 100.0):
        patience(BUSY, 1.0)
    for clock.now_s, error in ((101.0, MISSING), (150.0, BUSY), (170.0, MISSING)):
        patience(error, 1.0)


def test_who_bounds_the_call_waits_that_long() -> None:
    clock = Clock()
    patience = Patience(None, clock)
    for clock.now_s in (0.0, 1000.0):
        patience(MISSING, 1.0)


def test_the_same_reason_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    patience = Patience()
    for error in (BUSY, BUSY, MISSING, MISSING):
        patience(error, 1.0)
    told = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told == ["too much waits", "no worker is there"]
