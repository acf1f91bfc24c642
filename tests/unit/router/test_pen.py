"""When a session's frames leave, and what becomes of them when its worker is gone."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import grpc
import pytest
from headrace.v1 import session_pb2

from services.common.replies import Replies
from services.router.policy import Cost
from services.router.sessions.ledger import Booking
from services.router.sessions.outbox import Outbox
from services.router.sessions.pen import Pen


class Session:
    """As much of a session as is written."""

    def __init__(self) -> None:
        self.outbox = Outbox(2)
        self.closed = False

    def close(self) -> None:
        self.closed = True
        self.outbox.close()


class Line:
    """A session, its pen, and a line on which each frame is under way until the test says otherwise."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.under_way: list[asyncio.Future[None]] = []
        self.session = Session()
        self.pen = asyncio.ensure_future(Pen(cast(Any, self.session), Replies(self._write)).write())

    async def _write(self, frame: session_pb2.RouterFrame) -> None:
        self.sent.append([each.slot for each in frame.submits])
        self.under_way.append(asyncio.get_running_loop().create_future())
        await self.under_way[-1]

    def put(self, slot: int) -> Booking:
        booking = Booking(Cost(1, 1, 1))
        self.session.outbox.put([session_pb2.Submit(slot=slot)], booking)
        return booking

    async def turns(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)


@pytest.fixture
async def line() -> Line:
    found = Line()
    await found.turns()
    return found


async def test_what_comes_in_one_turn_leaves_in_one_frame_at_its_end(line: Line) -> None:
    line.put(1)
    line.put(2)
    assert line.sent == []
    await line.turns()
    assert line.sent == [[1, 2]]


async def test_what_comes_while_a_frame_is_under_way_leaves_when_it_is_written(line: Line) -> None:
    line.put(1)
    await line.turns()
    line.put(2)
    line.put(3)
    await line.turns()
    assert line.sent == [[1]]
    line.under_way[0].set_result(None)
    await line.turns()
    assert line.sent == [[1], [2, 3]]


async def test_what_waited_before_there_was_a_pen_leaves() -> None:
    line = Line()
    line.put(1)
    await line.turns()
    assert line.sent == [[1]]


async def test_after_a_write_that_failed_nothing_leaves_and_who_waits_is_told_why(line: Line) -> None:
    line.put(1)
    await line.turns()
    kept = line.put(2)
    line.under_way[0].set_exception(grpc.aio.InternalError("the worker has gone"))
    with pytest.raises(grpc.aio.InternalError):
        await line.pen
    await line.turns()
    assert line.sent == [[1]]
    assert kept.number is None, "it counts as never sent"


async def test_a_session_that_is_closed_ends_it_also_while_a_frame_is_stuck(line: Line) -> None:
    line.put(1)
    await line.turns()
    line.session.close()
    await line.turns()
    assert line.pen.done()
    line.put(2)
    await line.turns()
    assert line.sent == [[1]]
