"""A running stream moves when that pays, and only then; moves agree with each other and are not undone."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from services.router.policy import Cost, LatencyClass, WorkerView
from services.router.policy.fleet import Fleet
from services.router.policy.moving import (
    Move,
    MovingSettings,
    Stream,
    arrivals_a_s,
    expected_left,
    moves,
    slow_workers,
)
from services.router.policy.speed import StepModel
from tests.support.policy_values import make_ticket, make_worker

SETTINGS = MovingSettings()
INTERACTIVE = LatencyClass.INTERACTIVE
MODEL = StepModel(5e-3, 5e-5, 1e-10, 1e-8, 2e-3)
"""A step of 5 ms, and 2 ms for each stream in it."""
SLOW = StepModel(*(4 * each for each in MODEL[:5]))


def fleet_of(*workers: WorkerView) -> Fleet:
    fleet = Fleet()
    for each in workers:
        fleet.put(each)
    return fleet


def worker(key: str, sequences: int, model: StepModel = MODEL, **more: object) -> WorkerView:
    return make_worker(key, slots=64, sequences=sequences, step_model=model, **more)


def stream(number: int, on: str, *, left: int = 1000, context: int = 500) -> Stream:
    ticket = make_ticket(number, INTERACTIVE, prompt=context, expected_output=left)
    return Stream(ticket, on)


def found(
    streams: Iterable[Stream], fleet: Fleet, settings: MovingSettings = SETTINGS, arrivals: float = 0.0
) -> list[Move]:
    return list(moves(streams, fleet, settings, arrivals))


def test_streams_of_a_crowded_worker_go_to_one_that_has_just_come() -> None:
    fleet = fleet_of(worker("old", 32), worker("new", 0))
    assert slow_workers(fleet, SETTINGS) == ["old"]
    first, second = found([stream(each, "old") for each in range(32)], fleet, MovingSettings(most=2))
    assert (first.to, second.to) == ("new", "new")
    assert first.saved_s > second.saved_s > SETTINGS.saved_s


def test_nobody_moves_where_arrivals_will_soon_have_evened_it_out() -> None:
    fleet = fleet_of(worker("old", 32), worker("new", 0))
    streams = [stream(each, "old", left=200) for each in range(32)]
    assert found(streams, fleet, arrivals=0.1)
    assert found(streams, fleet, arrivals=30.0) == []


def test_arrivals_are_counted_by_what_is_still_there() -> None:
    assert arrivals_a_s([]) == 0.0
    assert arrivals_a_s([1.0, 2.0, 4.9, 40.0]) == 3 / 5, "of short ones few are there for long"
    assert arrivals_a_s([7.0, 8.0, 29.0, 31.0]) == 3 / 30, "of rare ones few have just come"


def test_streams_of_a_slow_worker_go_to_a_fast_one() -> None:
    fleet = fleet_of(worker("slow", 2, SLOW), worker("fast", 1), worker("fast-too", 1))
    assert slow_workers(fleet, SETTINGS) == ["slow"]
    [move] = found([stream(1, "slow")], fleet)
    assert move.to in ("fast", "fast-too")


def test_an_even_pool_is_left_alone() -> None:
    fleet = fleet_of(*(worker(f"w{each}", 8) for each in range(4)))
    assert slow_workers(fleet, SETTINGS) == []
    assert found([stream(each, f"w{each}") for each in range(4)], fleet) == []


def test_a_stream_that_is_nearly_done_or_costs_much_to_compute_again_stays() -> None:
    fleet = fleet_of(worker("old", 32), worker("new", 0))
    assert found([stream(1, "old", left=10)], fleet) == []
    assert len(found([stream(1, "old", left=60, context=100)], fleet)) == 1
    assert found([stream(1, "old", left=60, context=60_000)], fleet) == []


def test_a_worker_without_credit_or_with_other_numerics_takes_nobody() -> None:
    closed = worker("new", 0, credit=Cost(0, 0, 0))
    assert slow_workers(fleet_of(worker("old", 32), closed), SETTINGS) == []
    label = frozenset({("headrace/numerics", "aa")})
    fleet = fleet_of(worker("old", 32), worker("new", 0))
    assert found([stream(1, "old")._replace(numerics=label)], fleet) == []
    alike = fleet_of(worker("old", 32), worker("new", 0, labels=label))
    assert len(found([stream(1, "old")._replace(numerics=label)], alike)) == 1


def test_nobody_moves_where_the_others_would_lose_more_than_it_gains() -> None:
    heavy = stream(1, "slow", left=300, context=20_000)
    uneven = MovingSettings(uneven=0.0)
    idle = fleet_of(worker("slow", 1, SLOW), worker("fast", 0), worker("fast-too", 0))
    crowded = fleet_of(worker("slow", 1, SLOW), worker("fast", 24), worker("fast-too", 24))
    assert found([heavy], idle, uneven)
    assert not found([heavy], crowded, uneven)


def test_a_pool_whose_load_is_even_for_its_speeds_is_left_alone() -> None:
    """A slow worker with few streams beside fast ones with many: who comes next would take the place."""
    fleet = fleet_of(worker("slow", 8, SLOW), worker("fast", 24), worker("fast-too", 24))
    assert found([stream(1, "slow")], fleet) == []
    assert found([stream(1, "slow")], fleet, MovingSettings(uneven=0.0)) != []


def test_what_is_left_is_what_is_expected_then_half_of_what_there_is_and_never_more_than_may_come() -> None:
    assert expected_left(400, 100, 1000) == 300
    assert expected_left(400, 600, 2000) == 300
    assert expected_left(400, 900, 1000) == 100
    assert expected_left(400, 1000, 1000) == 1


MODELS = st.builds(
    StepModel,
    st.floats(1e-3, 5e-2),
    st.floats(1e-6, 1e-3),
    st.floats(0, 1e-9),
    st.floats(0, 1e-7),
    st.floats(0, 1e-2),
)
WORKERS = st.lists(
    st.tuples(MODELS, st.integers(0, 40), st.integers(0, 2000), st.booleans()), min_size=1, max_size=6
)
STREAMS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 4000), st.integers(1, 20_000)), min_size=1, max_size=20
)


def pool(workers: list[tuple[StepModel, int, int, bool]]) -> Fleet:
    return fleet_of(
        *(
            worker(f"w{number}", sequences, model, waiting_tokens=waiting, ready=ready)
            for number, (model, sequences, waiting, ready) in enumerate(workers)
        )
    )


def running(streams: list[tuple[int, int, int]], workers: int) -> list[Stream]:
    return [
        stream(number, f"w{on % workers}", left=left, context=context)
        for number, (on, left, context) in enumerate(streams)
    ]


@given(WORKERS, STREAMS, st.integers(0, 5))
def test_moves_are_few_pay_and_go_where_there_is_room(
    workers: list[tuple[StepModel, int, int, bool]], streams: list[tuple[int, int, int]], most: int
) -> None:
    fleet, settings = pool(workers), MovingSettings(most=most)
    those = {each.ticket.number: each for each in running(streams, len(workers))}
    made = found(those.values(), fleet, settings)
    assert len(made) <= most
    assert len({each.number for each in made}) == len(made)
    for move in made:
        view, ticket = fleet.get(move.to), those[move.number].ticket
        assert move.to != move.worker == those[move.number].worker
        assert view is not None
        assert view.affords(ticket.cost, ticket.foreground)
        assert move.saved_s >= settings.saved_s


@given(WORKERS, STREAMS)
def test_a_move_is_not_undone_by_the_next_survey(
    workers: list[tuple[StepModel, int, int, bool]], streams: list[tuple[int, int, int]]
) -> None:
    fleet, settings = pool(workers), MovingSettings(most=1)
    those = {each.ticket.number: each for each in running(streams, len(workers))}
    for move in found(those.values(), fleet, settings):
        moved = those[move.number]
        for key, more in ((move.worker, -1), (move.to, 1)):
            view = fleet.get(key)
            assert view is not None
            view.sequences = max(0, view.sequences + more)
            fleet.put(view)
        there = moved._replace(worker=move.to)
        assert move.worker not in [each.to for each in found([there], fleet, settings)]
