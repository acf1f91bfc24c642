"""Whatever of a stream has arrived, the rest of it makes the whole: ids, text, end."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from headrace.v1 import router_pb2, session_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.relay.flight import Flight
from services.router.relay.outlet import Flush, Outlet, Patience
from services.router.relay.taken_up import RestOutlet, replay
from services.router.relay.text import TextReader
from tests.support.flights import IDS, LENGTH, TABLE, TEXT, news, order, seated
from tests.support.readers import Reader

PATIENT = Patience(1 << 30, 1e9)
CANCELLED = session_pb2.END_REASON_CANCELLED
STOPS = st.sampled_from(
    [(), ("worker",), ("日本語",), ("worker. 日", "each t"), (TEXT[-6:] + "!",), (TEXT[-3:],)]
)
ENDS = st.sampled_from([LENGTH, session_pb2.END_REASON_EOS, session_pb2.END_REASON_STOP_TOKEN])


class Client:
    """What one has read over several calls."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.finished: router_pb2.Finished | None = None

    def has(self, reader: Reader) -> None:
        """What it read of one call."""
        self.ids += reader.ids
        self.text += reader.text
        self.finished = reader.end if isinstance(reader.end, router_pb2.Finished) else None

    @property
    def outcome(self) -> tuple[Any, ...]:
        end = self.finished
        assert end is not None
        how = (end.finish_reason, end.stop_string, end.stop_token_id, end.usage.output_tokens)
        return self.ids, self.text, how


def flight_to(outlet: Outlet, stops: tuple[str, ...]) -> Flight:
    it = order(stops=stops, end_ids=frozenset({IDS[-1]}))
    return seated(Flight(it, TextReader(TABLE, stops), outlet))


def updates(cuts: list[int], reason: Any) -> list[session_pb2.SequenceUpdate]:
    """The stream in pieces, the end with the last."""
    bounds = sorted({0, len(IDS), *cuts})
    pairs = list(pairwise(bounds))
    more = {"stop_token_id": IDS[-1]} if reason == session_pb2.END_REASON_STOP_TOKEN else {}
    found = [news(first, IDS[first:last]) for first, last in pairs[:-1]]
    return [*found, news(pairs[-1][0], IDS[pairs[-1][0] :], reason, **more)]


@settings(max_examples=150, deadline=None)
@given(
    stops=STOPS,
    reason=ENDS,
    cuts=st.lists(st.integers(1, len(IDS) - 1), max_size=12),
    flush=st.sampled_from([Flush(0.0, 1), Flush(60.0, 4)]),
    read=st.integers(0, 14),
    told=st.integers(0, 14),
    says_bytes=st.booleans(),
)
def test_the_rest_makes_the_whole(
    stops: tuple[str, ...], reason: Any, cuts: list[int], flush: Flush, read: int, told: int, says_bytes: bool
) -> None:
    """`told`: updates that the worker had when it was asked; `read`: messages that the client had."""

    async def run() -> None:
        stream = updates(cuts, reason)
        whole = Client()
        outlet = Outlet(flush, PATIENT)
        undisturbed = flight_to(outlet, stops)
        first, arrived = Outlet(flush, PATIENT), Client()
        broken, reader = flight_to(first, stops), Reader(first, reads=0)
        for number, update in enumerate(stream):
            undisturbed.advance(update, 2.0)
            broken.advance(update, 2.0)
            await asyncio.sleep(0)
            if number < read and (first.ended or reader.begun > len(reader.deltas)):
                await reader.read()
        arrived.has(reader)
        reader.leave()
        whole.has(await Reader(outlet).to_the_end())
        if arrived.finished is not None:
            return
        had = sum(1 for each in stream if each.first_index < len(arrived.ids))
        known = min(len(stream), max(told, had))
        await take_up(stream, known, arrived, says_bytes)
        assert arrived.outcome == whole.outcome

    async def take_up(stream: list[Any], known: int, arrived: Client, says_bytes: bool) -> None:
        next_index = len(arrived.ids)
        text_bytes = len(arrived.text.encode()) if says_bytes else None
        rest = RestOutlet(flush, PATIENT, next_index=next_index, text_bytes=text_bytes)
        flight = flight_to(rest, stops)
        output = [token for each in stream[:known] for token in each.token_ids]
        last = stream[known - 1] if known else None
        end = last.end if last is not None and last.HasField("end") else None
        replay(flight, rest, output, (), end, next_index=next_index, now=3.0)
        for update in stream[known:]:
            if not flight.over:
                flight.advance(update, 3.0)
        arrived.has(await Reader(rest).to_the_end())

    asyncio.run(run())


def test_what_was_cancelled_is_not_over_and_what_a_stop_string_ended_is() -> None:
    async def run() -> tuple[bool, bool]:
        over = []
        for stops in ((), ("router",)):
            outlet = RestOutlet(Flush(0.0, 1), PATIENT, next_index=0, text_bytes=0)
            flight = flight_to(outlet, stops)
            end = session_pb2.SequenceEnd(reason=CANCELLED)
            replay(flight, outlet, IDS, (), end, next_index=0, now=1.0)
            over.append(flight.over)
        return over[0], over[1]

    assert asyncio.run(run()) == (False, True)
