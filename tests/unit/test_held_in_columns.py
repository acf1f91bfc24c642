"""A worker that comes back with more than fits under names goes on with all of it."""

from __future__ import annotations

import asyncio

import pytest
from headrace.v1 import session_pb2

from services.worker.session import held
from tests.support.piped_mesh import PipedMesh, outcome, output_of

TOKENS = 12
PROMPTS = [[50 + each] for each in range(4)]


async def _broken_off(mesh: PipedMesh, spoil: bool) -> list[int]:
    """Breaks the session under some streams; returns the attempts that each took to its end."""
    with mesh.time_is_ours():
        mesh.turn()
        flights = [mesh.launch(prompt, max_tokens=TOKENS) for prompt in PROMPTS]
        for _ in range(3):
            mesh.turn()
        worker = mesh.workers["good"]
        worker.detach()
        if spoil:
            whole = worker._hello
            worker._hello = lambda: _torn(whole())  # type: ignore[method-assign]
        worker.attach()
        for _ in range(60):
            mesh.turn()
    for flight, prompt in zip(flights, PROMPTS, strict=True):
        assert (flight.ids, outcome(flight)) == (output_of(prompt, TOKENS), "finished")
    return [flight.attempt for flight in flights]


def _torn(hello: session_pb2.Hello) -> session_pb2.Hello:
    assert len(hello.held_more.slots) == len(PROMPTS)
    del hello.held_more.handles[-1]
    return hello


@pytest.fixture(autouse=True)
def _no_room_for_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "NAMED_BYTES", 0)


def test_what_is_held_in_columns_goes_on_where_it_was() -> None:
    async def run() -> None:
        assert await _broken_off(PipedMesh("good"), spoil=False) == [1] * len(PROMPTS)

    asyncio.run(run())


def test_of_torn_columns_nothing_is_held_and_all_is_tried_again() -> None:
    async def run() -> None:
        assert await _broken_off(PipedMesh("good"), spoil=True) == [2] * len(PROMPTS)

    asyncio.run(run())
