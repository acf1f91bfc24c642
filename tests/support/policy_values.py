"""Tickets and workers for tests of the router's policy, with values that suit most of them."""

from __future__ import annotations

from services.router.policy import Cost, LatencyClass, Ticket, WorkerView
from services.router.policy.speed import StepModel

FAST = StepModel(2e-3, 2e-5, 1e-10, 1e-8, 1e-5)
"""50,000 prompt tokens a second, decode steps of 2 ms."""


def make_ticket(
    number: int, latency_class: LatencyClass, tenant: str = "t", prompt: int = 100, **more: object
) -> Ticket:
    """A request of so many prompt tokens that arrived at 0."""
    values = {"arrival_s": 0.0, "expected_output": 20, "model": "m"} | more
    return Ticket(
        number=number,
        tenant=tenant,
        latency_class=latency_class,
        cost=Cost(prompt, 1, 1 + prompt // 64),
        total_tokens=prompt + 100,
        **values,  # type: ignore[arg-type]
    )


def make_worker(key: str = "w", slots: int = 8, **more: object) -> WorkerView:
    """An idle worker with credit for so many sequences."""
    values = {
        "model": "m",
        "ready": True,
        "credit": Cost(100_000, slots, 10_000),
        "sequences": 0,
        "waiting_tokens": 0,
        "max_sequences": 64,
        "max_tokens": 100_000,
        "total_blocks": 10_000,
        "free_blocks": 10_000,
        "step_model": FAST,
    } | more
    return WorkerView(key=key, **values)  # type: ignore[arg-type]
