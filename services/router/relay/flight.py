"""One request from submission to its one terminal event.

The fence: an update counts only for the attempt that is running, and only from the index that comes next.
What was seen before is dropped, a gap fails the attempt and is never skipped. So the client's output is a
prefix of one undisturbed run, whatever workers die and whatever frames come late.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.v1 import router_pb2, session_pb2, types_pb2

from services.common import errors
from services.router.chains import ChainKind, chains_at_once, packed
from services.router.policy import Prediction, Ticket
from services.router.relay import report
from services.router.relay.attempt import NOT_CLAIMABLE, Blame, Claimable, Progress, Seat, numerics_label
from services.router.relay.order import BLOCK_TOKENS, Order
from services.router.relay.outlet import AT_ONCE, MOST_KEPT, Flush, Outlet
from services.router.relay.text import TextReader

STOP = types_pb2.FINISH_REASON_STOP
LENGTH = types_pb2.FINISH_REASON_LENGTH
CANCELLED = session_pb2.END_REASON_CANCELLED


class Flight:
    """The state of one request. All methods are synchronous; `outlet` is what its client reads."""

    def __init__(
        self, order: Order, text: TextReader, outlet: Outlet, claimable: Claimable = NOT_CLAIMABLE
    ) -> None:
        self.order = order
        self.outlet = outlet
        self.claimable = claimable
        self.ids: list[int] = []
        self.attempt = 0
        self.losses = 0
        self.barred: frozenset[str] = frozenset()
        self.seat: Seat | None = None
        self.had_before = 0
        """Tokens that it had when it took its seat."""
        self.numerics: set[bytes] = set()
        """Of all workers that made a part of the output."""
        self.cached_tokens = 0
        self.reported_cached: int | None = None
        """Prompt tokens that the last worker found in its cache, once it has said so."""
        self.predicted: Prediction | None = None
        """The wait as predicted at the first queueing, the first token as predicted by its last seat."""
        self.queue_s = 0.0
        self.waiting_since = 0.0
        self.submitted_s = 0.0
        self.first_token_s = 0.0
        self.last_token_s = 0.0
        self.last_update_s = 0.0
        self.finished: router_pb2.Finished | None = None
        self._text = text
        self.suspected = False
        """Whether its last worker died before it gave this request a token."""
        self._last_numerics = b""

    @property
    def over(self) -> bool:
        """Whether its terminal event is decided."""
        return self.outlet.ended

    def ticket(self, kinds: Iterable[ChainKind]) -> Ticket:
        """What the scheduler needs to know of it now; its output is part of what is to be computed."""
        order, chains = self.order, None
        if not (self.ids or self.barred):
            return order.first_ticket
        if len(self.ids) >= BLOCK_TOKENS and order.chains:
            chains = chains_at_once(order.scope, kinds, order.prompt_ids + packed(self.ids))
        alike = numerics_label(self._last_numerics) if self.ids else frozenset()
        return order.ticket(len(self.ids), self.barred, chains, alike)

    @property
    def merging(self) -> Flush:
        """How much its worker may keep together; nothing where each token is looked at as it comes."""
        merging = self.outlet.merging
        looked_at = self._text.decode is None or self.order.sampling.HasField("logprobs")
        return AT_ONCE if looked_at or merging.tokens == 1 else merging

    @property
    def proven(self) -> bool:
        """Whether it got a token on its seat: what kills a worker does so when it comes there."""
        return len(self.ids) > self.had_before

    def take_seat(self, seat: Seat, now: float) -> None:
        """Begins the next attempt on a worker."""
        self.attempt += 1
        self.keep_seat(seat)
        self.had_before = len(self.ids)
        self.queue_s += now - self.waiting_since
        self.submitted_s = now

    def predict(self, predicted: Prediction) -> None:
        """Notes what was predicted when it was given to a worker, until its first token."""
        if not self.ids:
            first = self.predicted or predicted
            self.predicted = Prediction(first.wait_s, predicted.ttft_s)

    def keep_seat(self, seat: Seat) -> None:
        """The attempt goes on under another slot: the worker is back before it was given up."""
        self.seat = seat
        merging = self.merging
        self.outlet.merged = seat.merges and merging is not AT_ONCE and merging.tokens <= MOST_KEPT

    def leave_seat(self) -> None:
        """Ends the attempt; its late updates no longer count."""
        self.seat = None

    def lose_worker(self, blame: Blame, *, resumes: int) -> bool:
        """Notes that its worker was lost under it. False: it may not be tried again, and has failed."""
        self.losses += 1
        self.suspected = blame is not Blame.NONE
        if blame is Blame.CONVICTED:
            message = "two workers died as soon as this request ran there, so it is not tried on a third"
            self.fail(errors.Aborted(message, reason="QUARANTINED"))
        elif self.losses > resumes:
            self.fail(self._lost_error())
        return not self.over

    def fail(self, error: errors.HeadraceError) -> None:
        """Ends the request with an error, unless it has ended."""
        self.outlet.fail(error)

    def advance(self, update: session_pb2.SequenceUpdate, now: float) -> Progress:
        """Takes an update of the running attempt."""
        self.last_update_s = now
        ids: list[int] = update.token_ids[:]
        logprobs: Sequence[types_pb2.PositionLogprobs] = update.logprobs
        end = update.end if update.HasField("end") else None
        behind = len(self.ids) - update.first_index
        if behind < 0 and (ids or update.first_index):
            return Progress.GAP
        if behind > 0:
            ids, logprobs = ids[behind:], logprobs[behind:]
        if ids and self._take(ids, logprobs, end, now):
            return Progress.CUT if end is None else Progress.ENDED
        return Progress.ONGOING if end is None else self._end(end)

    def next_token(self, index: int, token_id: int, now: float, step: int = 0) -> Progress:
        """Takes one new id of the running attempt, which goes on; `step` counts those of its worker."""
        ids, decode = self.ids, self._text.decode
        if index != len(ids):
            return Progress.GAP if index > len(ids) else Progress.ONGOING
        if decode is None or not self.proven or index >= self.order.max_tokens:
            self.last_update_s = now
            return Progress.CUT if self._take([token_id], (), None, now) else Progress.ONGOING
        ids.append(token_id)
        self.last_update_s = self.last_token_s = now
        self.outlet.add(token_id, decode(token_id), step)
        if self.outlet.held_up and (slow := self.outlet.too_slow(now)) is not None:
            self.fail(slow)
            return Progress.CUT
        return Progress.ONGOING

    def next_tokens(self, index: int, ids: list[int], now: float) -> Progress:
        """Takes some new ids of the running attempt, which goes on."""
        self.last_update_s = now
        behind = len(self.ids) - index
        if behind < 0:
            return Progress.GAP
        fresh = ids[behind:]
        return Progress.CUT if fresh and self._take(fresh, (), None, now) else Progress.ONGOING

    def _take(
        self,
        ids: list[int],
        logprobs: Sequence[types_pb2.PositionLogprobs],
        end: session_pb2.SequenceEnd | None,
        now: float,
    ) -> bool:
        """Adds ids to the output; returns whether they completed it on our side."""
        room = self.order.max_tokens - len(self.ids)
        overlong = len(ids) > room
        if overlong:
            ids = ids[:room]
        silent = end is not None and not overlong and self._is_mute(ids[-1], end)
        read = self._text.read(ids[:-1] if silent else ids)
        if read.stop is not None:
            ids = ids[: read.taken]
        self._note_tokens(ids, now)
        ends = read.stop is not None or overlong or (end is not None and end.reason != CANCELLED)
        self.outlet.push(ids, read.text, logprobs[: len(ids)] if logprobs else (), ends=ends)
        if read.stop is not None:
            self._finish(STOP, stop_string=read.stop)
        elif overlong:
            self._finish_text(LENGTH)
        elif (slow := self.outlet.too_slow(now)) is not None:
            self.fail(slow)
        return self.outlet.ended

    def _is_mute(self, last_id: int, end: session_pb2.SequenceEnd) -> bool:
        """Whether the last id is what ended the sequence: delivered in token_ids, not in text."""
        if end.reason == session_pb2.END_REASON_STOP_TOKEN:
            return last_id == end.stop_token_id
        return end.reason == session_pb2.END_REASON_EOS and last_id in self.order.end_ids

    def _note_tokens(self, ids: Sequence[int], now: float) -> None:
        if not self.ids:
            self.first_token_s = now
        self.last_token_s = now
        self.ids.extend(ids)
        if self.seat is not None:
            self._last_numerics = self.seat.numerics
            self.numerics.add(self._last_numerics)

    def _end(self, end: session_pb2.SequenceEnd) -> Progress:
        """Takes the worker's word that the sequence is over."""
        if end.reason == CANCELLED:
            return Progress.LOST
        self.cached_tokens = min(end.usage.cached_tokens, len(self.order.prompt_ids))
        self.reported_cached = self.cached_tokens
        if end.reason == session_pb2.END_REASON_LENGTH:
            self._finish_text(LENGTH, end)
        elif end.reason == session_pb2.END_REASON_EOS:
            self._finish_text(STOP, end)
        elif end.reason == session_pb2.END_REASON_STOP_TOKEN:
            self._finish_text(STOP, end, stop_token_id=end.stop_token_id)
        else:
            self.fail(report.failure(end, self.order.grammar, begun=bool(self.ids)))
        return Progress.ENDED

    def _finish_text(
        self,
        reason: types_pb2.FinishReason,
        end: session_pb2.SequenceEnd | None = None,
        stop_token_id: int | None = None,
    ) -> None:
        """Ends well; what the decoder and the matcher held back is decided now."""
        rest = self._text.finish()
        self.outlet.push((), rest.text, ends=True)
        if rest.stop is not None:
            self._finish(STOP, end, stop_string=rest.stop)
        else:
            self._finish(reason, end, stop_token_id=stop_token_id)

    def _finish(
        self,
        reason: types_pb2.FinishReason,
        end: session_pb2.SequenceEnd | None = None,
        *,
        stop_string: str | None = None,
        stop_token_id: int | None = None,
    ) -> None:
        self.finished = report.finished(self, reason, end, stop_string, stop_token_id)
        self.outlet.finish(self.finished)

    def _lost_error(self) -> errors.HeadraceError:
        if not self.ids:
            return errors.Unavailable(f"{self.losses} workers were lost before the first token", retry_s=1.0)
        return errors.Aborted(f"{self.losses} workers were lost; {len(self.ids)} tokens had been made")
