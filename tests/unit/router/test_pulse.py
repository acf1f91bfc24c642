"""Hung is told from idle, from slow, and from a machine that was held up."""

from __future__ import annotations

from headrace.v1 import session_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.router.policy.speed import StepModel
from services.router.sessions.pulse import BOUND_S, CONFIRMED_S, LONGEST_STEPS, Pulse, longest_step_s

QUICK = StepModel(5e-3, 1e-5, 1e-10, 1e-8, 1e-5)
SLOW_CPU = StepModel(0.05, 2e-3, 1e-7, 1e-6, 1e-3)
IDLE = session_pb2.Load()


def beat(stuck_s: float, steps: int = 1, *, has_work: bool = True) -> session_pb2.Progress:
    return session_pb2.Progress(steps=steps, has_work=has_work, since_last_step_us=int(stuck_s * 1e6))


def hung_after(
    pulse: Pulse, load: session_pb2.Load, model: StepModel | None, until_s: float = 300.0
) -> float:
    """When a worker that beats every 0.2 s and never finishes a step again is called hung."""
    now = 0.0
    while now < 300.0:
        now += 0.2
        if pulse.stuck_s(beat(now), load, model, now) is not None:
            return now
    return now


def test_a_fast_engine_that_stands_still_is_hung_soon_after_a_second() -> None:
    load = session_pb2.Load(running=16, step_us=10_000)
    assert 1.0 + CONFIRMED_S <= hung_after(Pulse(1.0), load, QUICK) <= 1.8


def test_an_engine_that_rests_is_never_hung() -> None:
    pulse = Pulse(1.0)
    assert all(pulse.stuck_s(beat(each, has_work=False), IDLE, QUICK, each) is None for each in range(100))


def test_long_steps_buy_patience_and_so_does_a_prompt_that_must_take_long() -> None:
    assert hung_after(Pulse(1.0), session_pb2.Load(running=1, step_us=500_000), None) > 10.0
    waiting = session_pb2.Load(running=1, waiting_tokens=4096, step_us=50_000)
    predicted_s = longest_step_s(waiting, SLOW_CPU)
    assert predicted_s > 8.0
    assert hung_after(Pulse(1.0), waiting, SLOW_CPU) > LONGEST_STEPS * predicted_s


def test_a_step_that_finishes_between_two_beats_clears_the_engine() -> None:
    pulse, load = Pulse(1.0), session_pb2.Load(running=1, step_us=10_000)
    assert pulse.stuck_s(beat(5.0, steps=1), load, QUICK, 5.0) is None
    assert pulse.stuck_s(beat(5.0, steps=2), load, QUICK, 5.4) is None
    assert pulse.stuck_s(beat(0.1, steps=3), load, QUICK, 5.8) is None
    assert pulse.stuck_s(beat(1.5, steps=3), load, QUICK, 7.2) is None


def test_beats_that_came_late_all_at_once_are_one() -> None:
    pulse, load = Pulse(1.0), session_pb2.Load(running=1, step_us=10_000)
    assert all(pulse.stuck_s(beat(2.0 + each / 5), load, QUICK, 9.0) is None for each in range(10))


FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@given(
    st.builds(StepModel, *[FLOATS] * 6),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
def test_nothing_that_a_worker_says_of_its_speed_makes_it_immune(
    model: StepModel, running: int, tokens: int, step_us: int
) -> None:
    load = session_pb2.Load(running=running, waiting_tokens=tokens, step_us=step_us, kv_blocks_held=running)
    pulse, stuck_s = Pulse(1.0), BOUND_S + 1.0
    assert pulse.stuck_s(beat(stuck_s), load, model, 0.0) is None
    assert pulse.stuck_s(beat(stuck_s + 1), load, model, 1.0) is not None
