"""What the router does now and then costs no more however many requests wait: nobody stands still for it."""

from __future__ import annotations

from typing import Any

import pytest

from services.router.policy import Cost, LatencyClass, Scheduler, Ticket
from services.router.policy.aside import SURVEYED
from services.router.policy.fleet import Fleet
from services.router.policy.placement import Placement
from tests.support.policy_values import make_ticket, make_worker

EU = frozenset({("region", "eu")})
MANY = 2 * SURVEYED + 100


def calls_of(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[Any]:
    """Arguments of every call of a method from now on."""
    called: list[Any] = []
    method = getattr(kind, name)

    def counted(self: Any, *arguments: Any) -> Any:
        called.append(arguments)
        return method(self, *arguments)

    monkeypatch.setattr(kind, name, counted)
    return called


def many(**more: Any) -> Scheduler:
    """Very many requests, each of another length."""
    it = Scheduler()
    it.worker_changed(make_worker(slots=0))
    for number in range(MANY):
        it.submit(make_ticket(number, LatencyClass.BATCH, prompt=1 + number, **more), 0.0)
    return it


def test_a_survey_looks_at_so_many_and_asks_for_workers_once_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    it = many()
    asked = calls_of(monkeypatch, Fleet, "suited")
    assert it.impatient(1.0) == []
    assert len(asked) == 1, "lengths are no kinds"


def test_every_request_is_surveyed_in_turn() -> None:
    it = many(labels=EU)
    found: set[int] = set()
    for _ in range(2 * 3):
        found |= {ticket.number for ticket in it.impatient(0.0)}
    assert not found
    for _ in range(3):
        found |= {ticket.number for ticket in it.impatient(1e9)}
    assert not found, "batch is patient until its deadline"
    interactive = Scheduler()
    for number in range(MANY):
        interactive.submit(make_ticket(number, LatencyClass.INTERACTIVE), 0.0)
    for now in (0.0, 100.0):
        seen = [ticket.number for _ in range(3) for ticket in interactive.impatient(now)]
        assert len(seen) == (MANY if now else 0)
    assert sorted(seen) == list(range(MANY)), "each once in a round"


@pytest.mark.parametrize(("prompt", "twice"), [(100, False), (60_000, True)])
def test_only_who_lacks_blocks_is_tried_where_there_are_too_few(
    prompt: int, twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = Scheduler()
    slots = {"sequences": 60, "max_sequences": 64, "credit": Cost(100_000, 8, 100)}
    it.worker_changed(make_worker(**slots))  # type: ignore[arg-type]  # the last slots are for short requests
    it.submit(make_ticket(1, LatencyClass.STANDARD, prompt=prompt, expected_output=500), 0.0)
    tried = calls_of(monkeypatch, Placement, "choose")
    assert it.next(1000.0) is None
    asked: list[Ticket] = [each[0] for each in tried]
    assert [each.cost.kv_blocks for each in asked] == [1 + prompt // 64, *([1] if twice else [])]
