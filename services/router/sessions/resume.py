"""A broken session's worker is back before its requests were moved: what it still holds goes on."""

from __future__ import annotations

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
    held = {each.slot: each for each in after.hello.held}
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


def _is_of(job: session_pb2.HeldRequest, seat: Occupied, flight: Flight) -> bool:
    """One that is behind what the client has is not the one that was submitted."""
    return (
        job.attempt == seat.attempt
        and job.request_id == flight.order.request_id
        and job.next_index >= len(flight.ids)
    )
