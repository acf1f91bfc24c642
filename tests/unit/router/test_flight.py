"""The fence: whatever frames come, the client's output is exactly the expected one, or one clear error."""

from __future__ import annotations

import asyncio

import pytest
from headrace.v1 import router_pb2, session_pb2, types_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common import errors
from services.router.relay.attempt import Blame, Progress, Seat
from services.router.relay.flight import Flight
from services.router.relay.outlet import Flush, Outlet, Patience
from services.router.relay.text import TextReader
from tests.support.flights import IDS, LENGTH, TABLE, TEXT, TOKENIZER, flight, news, order, seated
from tests.support.readers import Reader


async def outcome(it: Flight) -> Reader:
    return await Reader(it.outlet).to_the_end()


async def test_tokens_come_out_once_in_order_with_one_end() -> None:
    it = seated(flight())
    assert it.advance(news(0, IDS[:5]), 2.0) is Progress.ONGOING
    assert it.advance(news(5, IDS[5:], LENGTH), 3.0) is Progress.ENDED
    client = await outcome(it)
    assert (client.ids, client.text) == (IDS, TEXT)
    finished = client.end
    assert isinstance(finished, router_pb2.Finished)
    assert finished.finish_reason == types_pb2.FINISH_REASON_LENGTH
    assert finished.usage.output_tokens == len(IDS)
    assert (finished.worker_id, finished.attempts, finished.seed) == ("w", 1, 9)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_interleaving_gives_the_expected_output_or_one_clear_error(data: st.DataObject) -> None:
    asyncio.run(_interleave(data))


async def _interleave(data: st.DataObject) -> None:
    """Duplicates, overlaps, gaps and losses in any order."""
    it = seated(flight())
    for _ in range(data.draw(st.integers(1, 30))):
        if it.over:
            break
        have = len(it.ids)
        match data.draw(st.sampled_from(["next", "next", "next", "again", "gap", "lost", "cancelled"])):
            case "next":
                upto = data.draw(st.integers(have, len(IDS)))
                ending = LENGTH if upto == len(IDS) else None
                progress = it.advance(news(have, IDS[have:upto], ending), 2.0)
            case "again":
                start = data.draw(st.integers(0, have))
                progress = it.advance(news(start, IDS[start:have]), 2.0)
            case "gap":
                start = data.draw(st.integers(have + 1, len(IDS) + 5))
                progress = it.advance(news(start, [*IDS[start:], 1]), 2.0)
                assert progress is Progress.GAP
            case "cancelled":
                progress = it.advance(news(have, [], session_pb2.END_REASON_CANCELLED), 2.0)
            case _:
                progress = Progress.LOST
        if progress in (Progress.GAP, Progress.LOST):
            it.leave_seat()
            if it.lose_worker(Blame.NONE, resumes=2):
                seated(it)
    if not it.over:
        it.advance(news(len(it.ids), IDS[len(it.ids) :], LENGTH), 9.0)
    client = await outcome(it)
    if isinstance(client.end, router_pb2.Finished):
        assert (client.ids, client.text) == (IDS, TEXT)
        assert client.end.attempts == it.losses + 1
    else:
        assert it.losses == 3
        assert client.ids == IDS[: len(client.ids)]


async def test_a_stop_string_cuts_the_text_and_asks_for_a_cancel() -> None:
    it = seated(flight(stops=("request",)))
    assert it.advance(news(0, IDS), 2.0) is Progress.CUT
    client = await outcome(it)
    assert client.text == TEXT.partition("request")[0]
    assert TOKENIZER.decode(client.ids).startswith(client.text + "request")
    finished = client.end
    assert isinstance(finished, router_pb2.Finished)
    assert (finished.finish_reason, finished.stop_string) == (types_pb2.FINISH_REASON_STOP, "request")
    assert finished.usage.output_tokens == len(client.ids)


async def test_a_stop_string_survives_a_lost_worker_in_its_middle() -> None:
    stop = TEXT[10:24]
    undisturbed = seated(flight(stops=(stop,)))
    undisturbed.advance(news(0, IDS), 2.0)
    expected = await outcome(undisturbed)
    for border in range(1, len(expected.ids)):
        it = seated(flight(stops=(stop,)))
        it.advance(news(0, IDS[:border]), 2.0)
        it.leave_seat()
        assert it.lose_worker(Blame.NONE, resumes=2)
        seated(it, "other")
        it.advance(news(border, IDS[border:]), 3.0)
        client = await outcome(it)
        assert (client.text, client.ids) == (expected.text, expected.ids)


async def test_the_id_that_ends_a_turn_is_delivered_but_is_no_text() -> None:
    letter = TOKENIZER.encode("a").ids
    it = seated(flight())
    it.advance(news(0, [*letter, *letter], session_pb2.END_REASON_STOP_TOKEN, stop_token_id=letter[0]), 2.0)
    client = await outcome(it)
    assert (client.text, client.ids) == ("a", letter * 2)
    finished = client.end
    assert isinstance(finished, router_pb2.Finished)
    assert finished.stop_token_id == letter[0]
    assert finished.WhichOneof("stop_match") == "stop_token_id"


async def test_a_worker_that_does_not_stop_is_cut_at_max_tokens() -> None:
    it = seated(flight(max_tokens=4))
    assert it.advance(news(0, IDS), 2.0) is Progress.CUT
    client = await outcome(it)
    assert client.ids == IDS[:4]
    finished = client.end
    assert isinstance(finished, router_pb2.Finished)
    assert finished.finish_reason == types_pb2.FINISH_REASON_LENGTH


async def test_an_end_that_lies_beyond_what_came_is_a_gap() -> None:
    it = seated(flight())
    it.advance(news(0, IDS[:3]), 2.0)
    assert it.advance(news(7, [], LENGTH), 2.0) is Progress.GAP
    assert not it.over


async def test_a_request_that_is_convicted_of_a_death_ends_as_quarantined() -> None:
    it = seated(flight())
    it.leave_seat()
    assert it.lose_worker(Blame.SUSPECTED, resumes=2)
    assert it.suspected
    seated(it, "other")
    it.leave_seat()
    assert not it.lose_worker(Blame.CONVICTED, resumes=2)
    error = (await outcome(it)).end
    assert isinstance(error, errors.Aborted)
    assert error.reason == "QUARANTINED"


@pytest.mark.parametrize(("begun", "kind"), [(False, errors.Unavailable), (True, errors.Aborted)])
async def test_the_third_loss_ends_a_request(begun: bool, kind: type[errors.HeadraceError]) -> None:
    it = seated(flight())
    if begun:
        it.advance(news(0, IDS[:2]), 2.0)
    for loss in range(3):
        it.leave_seat()
        assert it.lose_worker(Blame.NONE, resumes=2) == (loss < 2)
        seated(it)
    assert isinstance((await outcome(it)).end, kind)


@pytest.mark.parametrize(
    ("reason", "begun", "kind"),
    [
        (session_pb2.END_REASON_DEADLINE, True, errors.DeadlineExceeded),
        (session_pb2.END_REASON_ERROR, True, errors.Internal),
        (session_pb2.END_REASON_GRAMMAR, False, errors.InvalidArgument),
        (session_pb2.END_REASON_GRAMMAR, True, errors.FailedPrecondition),
        (99, True, errors.Internal),
    ],
)
async def test_bad_ends_become_their_errors(
    reason: session_pb2.EndReason, begun: bool, kind: type[errors.HeadraceError]
) -> None:
    it = seated(flight())
    if begun:
        it.advance(news(0, IDS[:2]), 2.0)
    assert it.advance(news(len(it.ids), [], reason), 2.0) is Progress.ENDED
    assert type((await outcome(it)).end) is kind


async def test_a_client_that_does_not_read_is_given_up() -> None:
    it = seated(flight(Patience(3, 1e9)))
    client = Reader(it.outlet, reads=0)
    await asyncio.sleep(0)
    it.advance(news(0, IDS[:1]), 2.0)
    assert it.advance(news(1, IDS[1:4]), 2.0) is Progress.ONGOING
    assert it.advance(news(4, IDS[4:5]), 2.0) is Progress.CUT
    assert isinstance((await client.to_the_end()).end, errors.SlowConsumer)


async def test_logprobs_stay_with_their_ids() -> None:
    it = seated(flight(stops=("router",)))
    message = news(0, IDS)
    message.logprobs.extend(types_pb2.PositionLogprobs(chosen=float(index)) for index in range(len(IDS)))
    it.advance(message, 2.0)
    [delta] = (await outcome(it)).deltas
    assert [each.chosen for each in delta.logprobs] == [float(i) for i in range(len(delta.token_ids))]


@pytest.mark.parametrize(
    ("more", "may_wait"),
    [
        ({}, True),
        ({"stops": ("router",)}, False),
        ({"sampling": types_pb2.SamplingParams(logprobs=0)}, False),
    ],
)
async def test_tokens_that_are_looked_at_one_by_one_do_not_wait_at_the_worker(
    more: dict[str, object], may_wait: bool
) -> None:
    it = order(**more)
    outlet = Outlet(Flush(0.02, 8), Patience(1 << 30, 1e9))
    flight = Flight(it, TextReader(TABLE, it.stops), outlet)
    assert (flight.merging == Flush(0.02, 8)) is may_wait
    flight.take_seat(Seat("older", 1, b"n"), 1.0)
    assert not outlet.merged
    flight.leave_seat()
    flight.take_seat(Seat("w", 1, b"n", merges=True), 2.0)
    assert outlet.merged is may_wait


@pytest.mark.parametrize(("tokens", "waited"), [(64, True), (1000, False)])
async def test_who_waits_for_more_than_a_worker_keeps_gets_it_in_one_message(
    tokens: int, waited: bool
) -> None:
    outlet = Outlet(Flush(5.0, tokens), Patience(1 << 30, 1e9))
    it = Flight(order(), TextReader(TABLE, ()), outlet)
    it.take_seat(Seat("w", 1, b"n", merges=True), 1.0)
    assert it.merging == Flush(5.0, tokens)
    assert outlet.merged is waited
