"""The rest of a stream that another call began: what its client has is not sent again.

All output goes through the same text reader and stop matcher as in the first call, from the beginning, and
what arrived is cut off here: tokens by their index, text by its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.v1 import session_pb2

from services.router.relay.flight import Flight
from services.router.relay.outlet import Flush, Logprobs, Outlet, Patience

_NATURAL = frozenset(
    {
        session_pb2.END_REASON_EOS,
        session_pb2.END_REASON_STOP_TOKEN,
        session_pb2.END_REASON_LENGTH,
        session_pb2.END_REASON_DEADLINE,
        session_pb2.END_REASON_ERROR,
        session_pb2.END_REASON_GRAMMAR,
    }
)


class RestOutlet(Outlet):
    """An outlet whose client has the first `next_index` tokens and `text_bytes` of text.

    Without `text_bytes` it has the text that was certain with those tokens; all of it if there are no more.
    """

    def __init__(
        self,
        flush: Flush,
        patience: Patience,
        *,
        next_index: int,
        text_bytes: int | None,
        whole: bool = False,
    ) -> None:
        super().__init__(flush, patience, whole=whole)
        self._index = next_index
        self._had_ids = next_index
        self._had_bytes = text_bytes
        self._catching_up = True

    def push(self, ids: Sequence[int], text: str, logprobs: Logprobs = (), *, ends: bool = False) -> None:
        """Adds output beyond what the client has."""
        if not (self._had_ids or self._had_bytes or self._catching_up):
            super().push(ids, text, logprobs, ends=ends)
            return
        had = min(self._had_ids, len(ids))
        self._had_ids -= had
        super().push(list(ids[had:]), self._without_had(text), logprobs, ends=ends)

    def add(self, token_id: int, text: str, step: int) -> None:
        """Adds one id beyond what the client has."""
        if self._had_ids or self._had_bytes or self._catching_up:
            self.push([token_id], text)
        else:
            super().add(token_id, text, step)

    def caught_up(self) -> None:
        """What comes from now on is not yet known to the client, text apart that `text_bytes` says it has."""
        self._catching_up = False

    def _without_had(self, text: str) -> str:
        if self._had_bytes is None:
            return "" if self._catching_up else text
        data = text.encode()
        had = min(self._had_bytes, len(data))
        self._had_bytes -= had
        return data[had:].decode(errors="ignore")


def replay(
    flight: Flight,
    outlet: RestOutlet,
    output: Sequence[int],
    logprobs: Logprobs,
    end: session_pb2.SequenceEnd | None,
    *,
    next_index: int,
    now: float,
) -> None:
    """Brings a fresh flight to where the stream is: `logprobs` are those of output[next_index:].

    Ends the flight where its stream has ended; an end that is only that of an attempt leaves it open.
    """
    told = end if end is not None and end.reason in _NATURAL else None
    whole = told is not None and next_index == len(output)
    _advance(flight, 0, output[:next_index], (), told if whole else None, now)
    outlet.caught_up()
    if not flight.over and (next_index < len(output) or told is not None):
        _advance(flight, next_index, output[next_index:], logprobs, told, now)


def _advance(
    flight: Flight,
    first_index: int,
    ids: Sequence[int],
    logprobs: Logprobs,
    end: session_pb2.SequenceEnd | None,
    now: float,
) -> None:
    update = session_pb2.SequenceUpdate(
        first_index=first_index, token_ids=list(ids), logprobs=logprobs, end=end
    )
    flight.advance(update, now)
