"""What a worker says: every part of its frames to whom it concerns.

Whatever it sends is contained here: unknown slots, other attempts, wrong indices and absurd numbers are
counted and dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from headrace.v1 import session_pb2

from services.common import logs
from services.router.metrics import RouterMetrics
from services.router.relay.attempt import Progress
from services.router.relay.flight import Flight
from services.router.sessions.floor import Floor
from services.router.sessions.kv import hear
from services.router.sessions.seats import Occupied, Seats
from services.router.sessions.sense import take_away_nonsense
from services.router.sessions.streamed import Streamed

if TYPE_CHECKING:
    from services.router.sessions.session import Session

NO_CREDIT_PAUSE_S = 0.05
_RETURNED_FOR_GOOD = (
    session_pb2.RETURN_REASON_DRAINING,
    session_pb2.RETURN_REASON_PREEMPTED,
    session_pb2.RETURN_REASON_UNSUPPORTED,
)
"""The others say that it might have gone at another moment: its worker gets nothing for a little."""
_Row = tuple[int, int, int, int | list[int]]
"""Slot, attempt, index of the first new id, and that alone or all of them."""
log = logs.get(__name__)


class Hearing:
    """Of one session. `last_command` is the last command frame that the worker has acknowledged."""

    def __init__(self, session: Session, seats: Seats, floor: Floor, metrics: RouterMetrics) -> None:
        self.last_command = 0
        self.streamed = Streamed(floor, metrics)
        self._session = session
        self._seats = seats
        self._floor = floor
        self._metrics = metrics
        self._steps = 0

    def take(self, frame: session_pb2.WorkerFrame, now: float) -> None:
        """A frame, in its turn; who waits for a first token comes first, for the others' fill the line.

        Raises FailedPrecondition when nonsense goes on for too long.
        """
        session = self._session
        self._reported(frame)
        begins, goes_on = _parted(frame.updates)
        for update in begins:
            self._update(update, now)
        if frame.HasField("next_tokens"):
            self._next_tokens(frame.next_tokens, now)
        for update in goes_on:
            self._update(update, now)
        self.streamed.count(now)
        for returned in frame.returned:
            self._returned(returned, now)
        for piece in frame.claimed:
            self._floor.claimed(session, piece)
        if frame.HasField("progress"):
            session.progressed(frame.progress, now)
        if frame.tenant_service:
            self.streamed.tell(now)
            self._floor.served(session, frame.tenant_service, now)
        self._heard_of_blocks(frame, now)
        self._floor.changed(session)

    def _reported(self, frame: session_pb2.WorkerFrame) -> None:
        session = self._session
        for kind in take_away_nonsense(frame, session.hello.kv_spec.blocks, session.outbox.number):
            session.misbehaved(kind)
        self.last_command = max(self.last_command, frame.acknowledged_command)
        session.account.reported(frame)
        if frame.HasField("draining"):
            session.draining = True

    def _heard_of_blocks(self, frame: session_pb2.WorkerFrame, now: float) -> None:
        session, feed = self._session, self._session.feed
        if feed is None:
            return
        faults = feed.faults.total()
        hear(feed, frame, now)
        if feed.faults.total() > faults:  # what to do about it is the feed's business: a gap is no crime
            self._metrics.bad_frames.labels("kv_news").inc()
            log.info(
                "kv_news_out_of_step", worker=session.worker_id, faults=dict(feed.faults), deaf=feed.deaf
            )
        if feed.snapshot_wanted(now):
            session.outbox.want_snapshot()

    def _update(self, update: session_pb2.SequenceUpdate, now: float) -> None:
        seat = self._seat(update.slot, update.attempt)
        if seat is None:
            return
        flight = seat.flight
        if flight is None:
            if update.HasField("end"):
                self._seats.free(update.slot)
            return
        had, before_s = len(flight.ids), flight.last_token_s
        progress = flight.advance(update, now)
        if len(flight.ids) > had:
            self.streamed.note(flight, had, before_s, now)
        if progress is not Progress.ONGOING:
            self._settle(flight, update.slot, progress, now)

    def _next_tokens(self, told: session_pb2.NextTokens, now: float) -> None:
        """New ids of many flights; of columns that do not fit together nothing is taken."""
        columns = told.slots[:], told.attempts[:], told.indices[:]
        ids: list[int] = told.token_ids[:]
        counts: list[int] = told.counts[:]
        if len({*map(len, columns), len(counts or ids)}) != 1 or (counts and not _fit(counts, ids)):
            self._session.misbehaved("torn_columns")
            return
        self._steps += 1
        new: Iterable[int | list[int]] = _cut(ids, counts) if counts else ids
        rows: Iterable[_Row] = zip(*columns, new, strict=True)
        if 0 in columns[2]:
            rows = sorted(rows, key=_goes_on)
        for slot, attempt, index, token in rows:
            seat = self._seat(slot, attempt)
            flight = seat.flight if seat is not None else None
            if flight is None:
                continue
            had, before_s = len(flight.ids), flight.last_token_s
            if isinstance(token, int):
                progress = flight.next_token(index, token, now, self._steps)
            else:
                progress = flight.next_tokens(index, token, now)
            if len(flight.ids) > had:
                self.streamed.note(flight, had, before_s, now)
            if progress is not Progress.ONGOING:
                self._settle(flight, slot, progress, now)

    def _settle(self, flight: Flight, slot: int, progress: Progress, now: float) -> None:
        self.streamed.tell_of(flight, now)
        if progress in (Progress.CUT, Progress.GAP):
            self._session.cancel(flight)
        else:
            self._seats.free(slot)
            flight.leave_seat()
        if progress is Progress.GAP:
            self._session.misbehaved("index_gap")
        if progress in (Progress.GAP, Progress.LOST):
            self._floor.lost(flight)
        else:
            self._floor.over(flight)

    def _returned(self, returned: session_pb2.Returned, now: float) -> None:
        seat = self._seat(returned.slot, returned.attempt)
        if seat is None:
            return
        self._seats.free(returned.slot)
        if returned.reason not in _RETURNED_FOR_GOOD:
            self._session.paused_until_s = now + max(returned.retry_ms / 1000, NO_CREDIT_PAUSE_S)
        if seat.flight is not None:
            flight = seat.flight
            flight.leave_seat()
            if returned.reason == session_pb2.RETURN_REASON_UNSUPPORTED:
                flight.barred |= {self._session.worker_id}
            self._metrics.returned.labels(_reason(returned.reason)).inc()
            if returned.reason == session_pb2.RETURN_REASON_DRAINING:
                self._floor.leaves(flight)
            else:
                self._floor.again(flight)

    def _seat(self, slot: int, attempt: int) -> Occupied | None:
        seat = self._seats.by_slot.get(slot)
        if seat is None:
            self._session.misbehaved("unknown_slot")
        elif seat.attempt != attempt:
            self._session.misbehaved("other_attempt")
            return None
        return seat


def _reason(reason: session_pb2.ReturnReason) -> str:
    try:
        return session_pb2.ReturnReason.Name(reason).removeprefix("RETURN_REASON_").lower()
    except ValueError:
        return "unknown"


def _parted(
    updates: Iterable[session_pb2.SequenceUpdate],
) -> tuple[list[session_pb2.SequenceUpdate], list[session_pb2.SequenceUpdate]]:
    """Those with a first token, and the others."""
    begins: list[session_pb2.SequenceUpdate] = []
    goes_on: list[session_pb2.SequenceUpdate] = []
    for update in updates:
        (begins if not update.first_index and update.token_ids else goes_on).append(update)
    return begins, goes_on


def _fit(counts: list[int], ids: list[int]) -> bool:
    """Whether so many ids each are all that there are."""
    return min(counts) > 0 and sum(counts) == len(ids)


def _cut(ids: list[int], counts: list[int]) -> Iterator[list[int]]:
    """The ids of each."""
    begin = 0
    for count in counts:
        yield ids[begin : begin + count]
        begin += count


def _goes_on(row: _Row) -> bool:
    """Whether a row of columns brings another token than the first."""
    return row[2] > 0
