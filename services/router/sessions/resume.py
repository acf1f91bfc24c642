"""A broken session's worker is back before its requests were moved: what it still holds goes on."""

from __future__ import annotations

import zlib
from typing import NamedTuple

from headrace.v1 import session_pb2

from services.router.relay.flight import Flight
from services.router.sessions.seats import Occupied
from services.router.sessions.session import Session


def same_process(before: Session, after: Session) -> bool:
    """Whether both are sessions of one process, with the same memory."""
    return before.hello.incarnation == after.hello.incarnation and before.model == after.model


def hand_over(before: Session, after: Session) -> list[Flight]:
    """Seats the requests of the earlier session in the later one, where the worker still holds them.

    The worker tells again what was lost on the way, and ends what is not wanted any more. Returns the
    requests that it does not hold; they have left their seats.
    """
    held = _told(after.hello)
    gone = []
    for slot, seat in before.vacate().items():
        flight = seat.flight
        if flight is None:
            continue
        job = held.get(slot)
        if job is not None and _is_of(job, seat, flight):
            after.take_up(flight, seat.booking, job.handle)
        else:
            flight.leave_seat()
            gone.append(flight)
    return gone


class _Held(NamedTuple):
    """What the worker has, by its slot in the session that broke."""

    name: str | int  # whole, or its CRC-32
    attempt: int
    next_index: int
    handle: int


def _told(hello: session_pb2.Hello) -> dict[int, _Held]:
    """All that a worker holds; columns that do not fit together hold nothing."""
    more = hello.held_more
    columns = more.names, more.attempts, more.next_indices, more.handles
    rows = list(map(_Held, *columns)) if len({len(more.slots), *map(len, columns)}) == 1 else []
    held = dict(zip(more.slots, rows, strict=False))
    for each in hello.held:
        held[each.slot] = _Held(each.request_id, each.attempt, each.next_index, each.handle)
    return held


def _is_of(held: _Held, seat: Occupied, flight: Flight) -> bool:
    """One that is behind what the client has is not the one that was submitted."""
    request_id = flight.order.request_id
    return (
        held.attempt == seat.attempt
        and held.name in (request_id, zlib.crc32(request_id.encode()))
        and held.next_index >= len(flight.ids)
    )
