"""Sessions over wires that lose, double, reorder and bend frames: streams stay exact, neighbours unaware.

Both halves are the production's, joined without a network. One worker's wires are bad, the other's are good.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.router.relay.flight import Flight
from tests.support.piped_mesh import PipedMesh, outcome, output_of
from tests.support.wire_fuzz import CORRUPT, LOSSY, Act, BadWire, acts

BAD_TURNS = 12
TURNS = 200
TOKENS = 9
OWN = [[40 + each, 5] for each in range(3)]
"""Prompts of the neighbour's requests."""
SHARED = [[60 + each, 7, 8] for each in range(4)]
"""Prompts of requests that begin on the worker with bad wires."""

plans = st.lists(acts(*LOSSY), max_size=24)
corrupt_plans = st.lists(acts(*LOSSY, *CORRUPT), max_size=24)


def test_on_good_wires_everything_is_exact() -> None:
    mesh = asyncio.run(_played([], []))
    for flight in mesh.flights:
        assert (flight.ids, flight.attempt) == (_expected(flight), 1)
    assert not mesh.workers["mad"].broken
    assert not list(_bad_frames(mesh))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans, plans)
def test_lost_doubled_and_late_frames_cost_no_token_and_double_none(up: list[Act], down: list[Act]) -> None:
    mesh = asyncio.run(_played(up, down))
    for flight in mesh.flights:
        assert (flight.ids, outcome(flight)) == (_expected(flight), "finished")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(corrupt_plans, corrupt_plans)
def test_bent_frames_touch_nobody_but_who_runs_behind_them(up: list[Act], down: list[Act]) -> None:
    mesh = asyncio.run(_played(up, down))
    for flight in mesh.flights[: len(OWN)]:
        assert (flight.ids, flight.attempt, outcome(flight)) == (_expected(flight), 1, "finished")
    for flight in mesh.flights[len(OWN) :]:
        assert outcome(flight) != "runs", "one terminal event"
    _nothing_is_left(mesh)


async def _played(up: list[Act], down: list[Act]) -> PipedMesh:
    """A mesh after all requests ended: the bad wires were bad for so many frames, then good again."""
    mesh = PipedMesh("good", "mad", resumes=1000)
    mad = mesh.workers["mad"]
    mad.up, mad.down = BadWire(up), BadWire(down)
    with mesh.time_is_ours():
        mesh.turn()
        for prompt in OWN:
            mesh.launch(prompt, max_tokens=TOKENS, pool="good")
        for prompt in SHARED:
            mesh.launch(prompt, max_tokens=TOKENS)
        for _ in range(TURNS):
            mesh.turn()
            _seats_are_flights(mesh)
            if mad.theirs is None:
                mad.attach()
            if not any(outcome(each) == "runs" for each in mesh.flights):
                break
    return mesh


def _expected(flight: Flight) -> list[int]:
    return output_of(list(flight.order.prompt_ids), TOKENS)


def _seats_are_flights(mesh: PipedMesh) -> None:
    """Who sits in a session knows it, and sits nowhere else."""
    seated = Counter[int]()
    for worker in mesh.workers.values():
        for flight in worker.theirs.flights() if worker.theirs else ():
            seated[flight.order.number] += 1
            assert flight.seat is not None
            assert flight.seat.worker_id == worker.worker_id
            assert not flight.over
    assert all(count == 1 for count in seated.values())


def _nothing_is_left(mesh: PipedMesh) -> None:
    for worker in mesh.workers.values():
        assert worker.theirs is not None
        assert worker.theirs.flights() == []


def _bad_frames(mesh: PipedMesh) -> list[str]:
    return [
        sample.labels["kind"]
        for family in mesh.registry.collect()
        if family.name == "headrace_bad_frames"
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    ]


@pytest.mark.parametrize("lost", range(1, 5))
def test_an_idle_worker_that_heard_nothing_of_its_requests_is_told_again(lost: int) -> None:
    mesh = asyncio.run(_played([], [Act("drop")] * lost))
    for flight in mesh.flights:
        assert (flight.ids, outcome(flight)) == (_expected(flight), "finished")


@pytest.mark.parametrize("place", range(0, 30, 3))
def test_a_session_that_breaks_at_any_frame_loses_nothing(place: int) -> None:
    cut = [Act("pass")] * place + [Act("flip", 0.0, 255)]
    mesh = asyncio.run(_played(cut, []))
    for flight in mesh.flights:
        assert (flight.ids, outcome(flight)) == (_expected(flight), "finished")
