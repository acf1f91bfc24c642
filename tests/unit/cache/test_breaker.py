from __future__ import annotations

from services.cache.breaker import LONGEST_WAIT_S, MIN_CALLS, Breaker


def closed_breaker(jitter: float = 0.999999) -> Breaker:
    breaker = Breaker(lambda: jitter)
    breaker.close(0.0)
    return breaker


def test_relies_on_nothing_before_a_probe_answered() -> None:
    breaker = Breaker(lambda: 0.0)
    assert not breaker.closed
    assert breaker.probe_due_s == 0.0


def test_opens_when_half_of_the_calls_fail() -> None:
    breaker = closed_breaker()
    for _ in range(MIN_CALLS // 2):
        breaker.record(True, 0.001, 1.0)
    for _ in range(MIN_CALLS // 2 - 1):
        breaker.record(False, 0.005, 1.0)
    assert breaker.closed
    breaker.record(False, 0.005, 1.0)
    assert not breaker.closed


def test_few_failures_among_few_calls_open_nothing() -> None:
    breaker = closed_breaker()
    for _ in range(MIN_CALLS - 1):
        breaker.record(False, 0.005, 1.0)
    assert breaker.closed


def test_opens_when_answers_are_slow_though_none_fails() -> None:
    breaker = closed_breaker()
    for _ in range(MIN_CALLS):
        breaker.record(True, 0.001, 1.0)
    breaker.record(True, 0.021, 1.0)
    assert breaker.closed
    breaker.record(True, 0.021, 1.0)
    assert not breaker.closed


def test_old_failures_are_forgotten() -> None:
    breaker = closed_breaker()
    for _ in range(MIN_CALLS - 1):
        breaker.record(False, 0.005, 1.0)
    for _ in range(MIN_CALLS):
        breaker.record(True, 0.001, 12.0)
    breaker.record(False, 0.005, 12.0)
    assert breaker.closed


def test_waits_longer_each_time_up_to_a_bound_and_starts_over_after_a_good_while() -> None:
    breaker = closed_breaker()
    waits, now = [], 0.0
    for _ in range(8):
        breaker.open(now)
        waits.append(round(breaker.probe_due_s - now))
        now = breaker.probe_due_s
    assert waits == [1, 2, 4, 8, 16, 30, 30, LONGEST_WAIT_S]
    breaker.close(now)
    breaker.open(now + 1)
    assert round(breaker.probe_due_s - now - 1) == LONGEST_WAIT_S
    breaker.close(now)
    breaker.open(now + 60)
    assert round(breaker.probe_due_s - now - 60) == 1


def test_jitter_never_waits_less_than_half() -> None:
    breaker = closed_breaker(jitter=0.0)
    breaker.open(10.0)
    assert breaker.probe_due_s == 10.5
