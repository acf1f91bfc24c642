"""One worker's session, frame by frame: exact load and credit, and nothing that a worker sends does harm."""

from __future__ import annotations

import asyncio

import pytest
from headrace.v1 import admin_pb2, session_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.common.conduct import BURST
from services.common.errors import FailedPrecondition
from services.router.metrics import RouterMetrics
from services.router.policy import Cost, LatencyClass
from services.router.relay.attempt import Blame
from services.router.relay.flight import Flight
from services.router.sessions.seats import ANSWER_S
from services.router.sessions.session import Session
from services.router.sessions.times import SessionTimes
from tests.support.flights import IDS, LENGTH, flight, news

COST = Cost(10, 1, 2)


class Floor:
    """Notes what a session tells."""

    def __init__(self) -> None:
        self.back: list[Flight] = []
        self.gone: list[tuple[Flight, Blame]] = []
        self.left: list[Flight] = []

    @property
    def all(self) -> list[Flight]:
        return [*self.back, *self.left, *(it for it, _ in self.gone)]

    def changed(self, session: Session) -> None:
        pass

    def again(self, it: Flight) -> None:
        self.back.append(it)

    def lost(self, it: Flight, blame: Blame = Blame.NONE) -> None:
        self.gone.append((it, blame))

    def leaves(self, it: Flight) -> None:
        self.left.append(it)

    def streamed(self, streamed: object, now: float) -> None:
        pass

    def over(self, it: Flight) -> None:
        pass

    def served(self, session: Session, told: object, now: float) -> None:
        pass


class Bench:
    """A session and a worker's pen."""

    def __init__(self) -> None:
        self.floor = Floor()
        self.registry = CollectorRegistry()
        hello = session_pb2.Hello(
            worker_id="w", model="m", kv_spec=session_pb2.KvSpec(blocks=100, max_sequences=8, max_tokens=1000)
        )
        self.session = Session(
            hello,
            "s",
            SessionTimes(),
            self.floor,
            RouterMetrics(self.registry),
            frames_received=2,
            frames_sent=2,
            now=0.0,
        )
        self.number = 2

    def say(self, now: float = 0.0, acknowledged: int = 0, **parts: object) -> None:
        self.number += 1
        self.session.handle(
            session_pb2.WorkerFrame(number=self.number, acknowledged_command=acknowledged, **parts),  # type: ignore[arg-type]
            now,
        )

    def seat(self, **more: object) -> Flight:
        it = flight(**more)
        self.session.submit(it, COST, 0.0)
        return it

    def bad(self, kind: str) -> float:
        return self.registry.get_sample_value("headrace_bad_frames_total", {"kind": kind}) or 0.0

    def update(self, it: Flight, *args: object, **more: object) -> session_pb2.SequenceUpdate:
        message = news(*args, **more)  # type: ignore[arg-type]
        assert it.seat is not None
        message.slot, message.attempt = it.seat.slot, it.attempt
        return message


@pytest.fixture
async def bench() -> Bench:
    return Bench()


def grant(sequences: int = 4) -> dict[str, object]:
    return {
        "credit": session_pb2.Credit(prefill_tokens=100, sequences=sequences, kv_blocks=50),
        "load": session_pb2.Load(running=1, waiting=1, waiting_tokens=7),
    }


async def test_credit_and_load_count_what_was_not_acknowledged(bench: Bench) -> None:
    bench.say(**grant())
    bench.seat()
    bench.seat()
    view = bench.session.view(0.0)
    assert view.credit == Cost(80, 2, 46)
    assert (view.sequences, view.waiting_tokens) == (4, 27)
    frame = bench.session.outbox.take()
    assert frame is not None
    bench.say(acknowledged=frame.number - 1, **grant())
    assert bench.session.view(0.0).credit.sequences == 2
    bench.say(acknowledged=frame.number, **grant())
    view = bench.session.view(0.0)
    assert view.credit == Cost(100, 4, 50)
    assert (view.sequences, view.waiting_tokens) == (2, 7)


async def test_an_acknowledgement_without_credit_does_not_give_credit_back(bench: Bench) -> None:
    bench.say(**grant())
    bench.seat()
    frame = bench.session.outbox.take()
    assert frame is not None
    bench.say(acknowledged=frame.number)
    assert bench.session.view(0.0).credit.sequences == 3


async def test_a_gap_cancels_the_attempt_and_asks_for_another(bench: Bench) -> None:
    it = bench.seat()
    bench.session.outbox.take()
    bench.say(updates=[bench.update(it, 0, IDS[:2])])
    bench.say(updates=[bench.update(it, 5, IDS[5:7])])
    assert bench.floor.gone == [(it, Blame.NONE)]
    assert it.seat is None
    frame = bench.session.outbox.take()
    assert frame is not None
    assert [(each.slot, each.attempt) for each in frame.cancels] == [(1, 1)]
    assert bench.bad("index_gap") == 1


async def test_late_news_of_a_cancelled_request_are_dropped_and_its_end_frees_the_slot(bench: Bench) -> None:
    it = bench.seat()
    late = bench.update(it, 0, IDS[:2])
    last = bench.update(it, 2, IDS[2:4], session_pb2.END_REASON_CANCELLED)
    bench.session.cancel(it)
    bench.say(updates=[late])
    bench.say(updates=[last])
    assert it.ids == []
    assert bench.bad("unknown_slot") == 0
    bench.say(updates=[last])
    assert bench.bad("unknown_slot") == 1


def columns(*rows: tuple[int, int, int, int]) -> session_pb2.NextTokens:
    """Slot, attempt, index and id of each."""
    slots, attempts, indices, ids = map(list, zip(*rows, strict=True))
    return session_pb2.NextTokens(slots=slots, attempts=attempts, indices=indices, token_ids=ids)


async def test_one_new_id_each_of_many_comes_as_columns_before_the_updates(bench: Bench) -> None:
    first, second = bench.seat(), bench.seat()
    bench.say(next_tokens=columns((1, 1, 0, IDS[0]), (2, 1, 0, IDS[5])))
    rest = bench.update(second, 2, IDS[7:9], LENGTH)
    bench.say(next_tokens=columns((1, 1, 1, IDS[1]), (2, 1, 1, IDS[6])), updates=[rest])
    assert (first.ids, second.ids) == (IDS[:2], IDS[5:9])
    assert second.over
    assert not first.over


async def test_whose_first_token_came_is_told_before_those_that_go_on(bench: Bench) -> None:
    flights = [bench.seat() for _ in range(4)]
    bench.say(next_tokens=columns((1, 1, 0, IDS[0]), (3, 1, 0, IDS[0])))
    told: list[Flight] = []
    for each in flights:
        each.outlet.add = each.outlet.push = lambda *_, to=each, **__: told.append(to)  # type: ignore[method-assign,misc]
    bench.say(
        next_tokens=columns((1, 1, 1, IDS[1]), (3, 1, 1, IDS[1]), (4, 1, 0, IDS[0])),
        updates=[bench.update(flights[1], 0, IDS[:1], None)],
    )
    assert told == [flights[1], flights[3], flights[0], flights[2]]


async def test_an_end_without_ids_counts_after_the_ids_of_its_frame(bench: Bench) -> None:
    ended = bench.seat()
    bench.say(next_tokens=columns((1, 1, 0, IDS[0])), updates=[bench.update(ended, 0, [], LENGTH)])
    assert ended.ids == IDS[:1]
    assert ended.over


async def test_only_frames_that_a_worker_keeps_something_for_are_acknowledged_by_themselves(
    bench: Bench,
) -> None:
    it = bench.seat()
    bench.session.outbox.take()
    row, load = columns((1, 1, 0, IDS[0])), session_pb2.Load(running=1)
    bench.say(next_tokens=row, load=load, acknowledged=bench.session.outbox.number)
    bench.session.check(0.0)
    assert bench.session.outbox.take() is None
    for part in ({"updates": [bench.update(it, 1, IDS[1:2])]}, grant()):
        bench.say(**part)
        bench.session.check(0.0)
        frame = bench.session.outbox.take()
        assert frame is not None
        assert frame.acknowledged_frame == bench.number
    bench.say(acknowledged=bench.session.outbox.number)
    bench.session.check(0.0)
    assert bench.session.outbox.take() is None


async def test_columns_are_fenced_like_updates(bench: Bench) -> None:
    it = bench.seat()
    bench.say(next_tokens=columns((1, 1, 0, IDS[0]), (1, 1, 0, 9), (1, 7, 1, 9), (99, 1, 0, 9)))
    assert it.ids == IDS[:1], "what was seen, another attempt, and nobody's"
    assert (bench.bad("other_attempt"), bench.bad("unknown_slot")) == (1, 1)
    bench.say(next_tokens=columns((1, 1, 2, IDS[2])))
    assert bench.floor.gone == [(it, Blame.NONE)]
    assert bench.bad("index_gap") == 1


async def test_several_new_ids_each_are_taken_as_columns_too(bench: Bench) -> None:
    first, second = bench.seat(), bench.seat()
    bench.say(next_tokens=columns((1, 1, 0, IDS[0]), (2, 1, 0, IDS[5])))
    runs = session_pb2.NextTokens(
        slots=[1, 2], attempts=[1, 1], indices=[1, 0], token_ids=[*IDS[1:4], *IDS[5:7]], counts=[3, 2]
    )
    bench.say(next_tokens=runs)
    assert (first.ids, second.ids) == (IDS[:4], IDS[5:7]), "what was seen is dropped"
    runs.indices[:] = [5, 2]
    bench.say(next_tokens=runs)
    assert bench.floor.gone == [(first, Blame.NONE)]
    assert bench.bad("index_gap") == 1


@pytest.mark.parametrize("counts", [[3, 1], [4, 0], [5], [1, 1, 3], [2, 2]])
async def test_of_columns_whose_counts_are_wrong_nothing_is_taken(bench: Bench, counts: list[int]) -> None:
    it = bench.seat()
    ids = IDS[: 4 if counts == [4, 0] else 5]
    bench.say(
        next_tokens=session_pb2.NextTokens(
            slots=[1, 2], attempts=[1, 1], indices=[0, 0], token_ids=ids, counts=counts
        )
    )
    assert it.ids == []
    assert bench.bad("torn_columns") == 1


async def test_of_columns_of_different_lengths_nothing_is_taken(bench: Bench) -> None:
    it = bench.seat()
    torn = columns((1, 1, 0, IDS[0]), (1, 1, 1, IDS[1]))
    del torn.indices[-1]
    bench.say(next_tokens=torn)
    assert it.ids == []
    assert bench.bad("torn_columns") == 1
    assert not bench.session.closed


async def test_a_stop_string_in_columns_cuts_its_request(bench: Bench) -> None:
    it = bench.seat(stops=("router",))
    bench.session.outbox.take()
    for index, token in enumerate(IDS):
        if it.seat is not None:
            bench.say(next_tokens=columns((1, 1, index, token)))
    frame = bench.session.outbox.take()
    assert it.over
    assert frame is not None
    assert [(each.slot, each.attempt) for each in frame.cancels] == [(1, 1)]


async def test_unknown_slots_and_other_attempts_are_counted_and_dropped(bench: Bench) -> None:
    it = bench.seat()
    wrong = bench.update(it, 0, IDS[:2])
    wrong.attempt = 7
    bench.say(updates=[wrong, session_pb2.SequenceUpdate(slot=99, token_ids=[1])])
    assert it.ids == []
    assert (bench.bad("other_attempt"), bench.bad("unknown_slot")) == (1, 1)
    assert not bench.session.closed


async def test_a_frame_under_a_number_that_was_used_ends_the_session_for_it_may_be_another(
    bench: Bench,
) -> None:
    it = bench.seat()
    bench.session.outbox.take()
    bench.say(updates=[bench.update(it, 0, IDS[:2])])
    bench.number -= 1
    bench.say(updates=[bench.update(it, 2, IDS[2:4], LENGTH)])
    assert it.ids == IDS[:2]
    assert bench.bad("duplicate_frame") == 1
    assert bench.session.closed
    assert bench.session.may_come_back


async def test_a_worker_that_goes_on_with_nonsense_is_closed(bench: Bench) -> None:
    for _ in range(BURST):
        bench.say(updates=[session_pb2.SequenceUpdate(slot=99)])
    assert not bench.session.closed
    with pytest.raises(FailedPrecondition):
        bench.say(updates=[session_pb2.SequenceUpdate(slot=99)])
    assert isinstance(bench.session.close_error, FailedPrecondition)


async def test_a_little_nonsense_now_and_then_is_forgiven_for_ever(bench: Bench) -> None:
    for turn in range(3 * BURST):
        bench.say(float(turn), updates=[session_pb2.SequenceUpdate(slot=99)])
    assert not bench.session.closed


async def test_a_returned_request_comes_back_and_no_credit_pauses_the_worker(bench: Bench) -> None:
    bench.say(**grant())
    it = bench.seat()
    returned = session_pb2.Returned(
        slot=1, attempt=1, reason=session_pb2.RETURN_REASON_NO_CREDIT, retry_ms=300
    )
    bench.say(returned=[returned])
    assert bench.floor.back == [it]
    assert not bench.session.view(0.2).ready
    assert bench.session.view(0.4).ready


async def test_a_worker_that_can_never_run_it_is_barred(bench: Bench) -> None:
    it = bench.seat()
    returned = session_pb2.Returned(slot=1, attempt=1, reason=session_pb2.RETURN_REASON_UNSUPPORTED)
    bench.say(returned=[returned])
    assert it.barred == {"w"}


async def test_silence_makes_a_worker_stale_and_then_lost(bench: Bench) -> None:
    times = SessionTimes()
    bench.say(now=10.0, **grant())
    assert bench.session.state(10.0 + times.stale_s - 0.01) == admin_pb2.WORKER_STATE_READY
    assert bench.session.state(10.0 + times.stale_s + 0.01) == admin_pb2.WORKER_STATE_STALE
    assert not bench.session.view(10.0 + times.stale_s + 0.01).ready
    bench.session.check(10.0 + times.lost_s - 0.01)
    assert not bench.session.closed
    bench.session.check(10.0 + times.lost_s + 0.01)
    assert bench.session.closed


async def test_work_without_steps_counts_as_hung_and_rest_does_not(bench: Bench) -> None:
    hour_us = 3600 * 1_000_000
    bench.say(progress=session_pb2.Progress(steps=1, has_work=False, since_last_step_us=hour_us))
    assert not bench.session.closed
    bench.say(1.0, progress=session_pb2.Progress(steps=1, has_work=True, since_last_step_us=hour_us))
    assert not bench.session.closed, "a second beat must agree"
    assert not bench.session.view(1.0).ready, "but it gets nothing new"
    bench.say(1.4, progress=session_pb2.Progress(steps=1, has_work=True, since_last_step_us=hour_us))
    assert bench.session.closed


async def test_a_lost_session_suspects_what_had_no_token_and_sends_back_what_never_left(bench: Bench) -> None:
    fresh, running = bench.seat(), bench.seat()
    bench.session.outbox.take()
    bench.say(updates=[bench.update(running, 0, IDS[:2])])
    unsent = bench.seat()
    bench.session.give_up()
    assert bench.floor.gone == [(fresh, Blame.SUSPECTED), (running, Blame.NONE)]
    assert bench.floor.back == [unsent]
    assert fresh.seat is running.seat is unsent.seat is None


async def test_who_is_sent_away_for_nonsense_makes_nobody_a_suspect(bench: Bench) -> None:
    it = bench.seat()
    bench.session.outbox.take()
    with pytest.raises(FailedPrecondition):
        bench.say(updates=[session_pb2.SequenceUpdate(slot=99)] * (BURST + 1))
    bench.session.give_up()
    assert bench.floor.gone == [(it, Blame.NONE)]


async def test_the_only_suspect_of_two_deaths_is_convicted_and_its_neighbours_are_cleared(
    bench: Bench,
) -> None:
    poison, innocent = bench.seat(), bench.seat()
    bench.session.outbox.take()
    poison.suspected = True
    bench.session.give_up()
    assert bench.floor.gone == [(poison, Blame.CONVICTED)]
    assert bench.floor.left == [innocent]


async def test_frames_after_the_end_of_a_session_count_no_more(bench: Bench) -> None:
    it = bench.seat()
    late = bench.update(it, 0, IDS[:2])
    bench.session.close()
    bench.say(updates=[late])
    assert it.ids == []


async def test_a_draining_worker_costs_no_request_a_resume(bench: Bench) -> None:
    it = bench.seat()
    bench.session.outbox.take()
    bench.say(draining=session_pb2.Draining(remaining_ms=10))
    assert not bench.session.view(0.0).ready
    bench.session.give_up()
    assert (bench.floor.left, bench.floor.gone) == ([it], [])


async def test_a_long_prompt_leaves_in_pieces_within_the_frame_limit(bench: Bench) -> None:
    prompt = [0xFFFFFFFF] * 50_000
    bench.seat(prompt_ids=prompt)
    got: list[int] = []
    while (frame := bench.session.outbox.take()) is not None:
        assert frame.ByteSize() <= 64 << 10
        for submit in frame.submits:
            assert submit.prompt_tokens == len(prompt)
            got += submit.prompt_ids
        for piece in frame.prompt_pieces:
            assert piece.offset == len(got)
            got += piece.ids
    assert got == prompt


@pytest.mark.parametrize(("prompt_tokens", "output_tokens"), [(3, 50_000), (9000, 100), (8000, 400)])
async def test_output_that_goes_on_elsewhere_leaves_in_pieces_after_its_prompt(
    bench: Bench, prompt_tokens: int, output_tokens: int
) -> None:
    prompt, output = [0xFFFFFFFF] * prompt_tokens, [0xFFFFFFFE] * output_tokens
    it = flight(prompt_ids=prompt)
    it.ids.extend(output)
    bench.session.submit(it, COST, 0.0)
    got: list[int] = []
    while (frame := bench.session.outbox.take()) is not None:
        assert frame.ByteSize() <= 64 << 10
        for submit in frame.submits:
            assert (submit.prompt_tokens, submit.next_index) == (len(prompt), len(output))
            got += [*submit.prompt_ids, *submit.delivered_ids]
        for piece in frame.prompt_pieces:
            assert piece.offset == len(got)
            got += piece.ids
    assert got == prompt + output


U32 = st.integers(0, 5) | st.integers(0, 2**32 - 1)
U64 = st.integers(0, 5) | st.integers(0, 2**64 - 1)
ENDS = st.none() | st.builds(
    lambda reason, queue: session_pb2.SequenceEnd(reason=reason, queue_us=queue), st.integers(-3, 12), U64
)
UPDATES = st.builds(
    lambda slot, attempt, first, ids, ending: session_pb2.SequenceUpdate(
        slot=slot, attempt=attempt, first_index=first, token_ids=ids, end=ending
    ),
    U32,
    U32,
    U32,
    st.lists(U32, max_size=4),
    ENDS,
)
RETURNED = st.builds(
    lambda slot, attempt, reason, retry: session_pb2.Returned(
        slot=slot, attempt=attempt, reason=reason, retry_ms=retry
    ),
    U32,
    U32,
    st.integers(-2, 9),
    U32,
)
COLUMNS = st.builds(
    lambda rows, counts: session_pb2.NextTokens(
        **{name[0].name: list(name[1]) for name in columns(*rows).ListFields()}, counts=counts
    ),
    st.lists(st.tuples(U32, U32, U32, U32), min_size=1, max_size=6),
    st.just([]) | st.lists(st.integers(0, 3), max_size=6),
)
FRAMES = st.builds(
    lambda number, acknowledged, next_tokens, updates, returned, credit, load: session_pb2.WorkerFrame(
        number=number,
        acknowledged_command=acknowledged,
        next_tokens=next_tokens,
        updates=updates,
        returned=returned,
        credit=session_pb2.Credit(prefill_tokens=credit, sequences=credit % 2**32),
        load=session_pb2.Load(running=load % 2**32, waiting_tokens=load),
    ),
    U64,
    U64,
    st.none() | COLUMNS,
    st.lists(UPDATES, max_size=4),
    st.lists(RETURNED, max_size=2),
    U64,
    U64,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(FRAMES, max_size=15))
def test_no_frame_harms_the_session_or_another_request(frames: list[session_pb2.WorkerFrame]) -> None:
    asyncio.run(_fuzz(frames))


async def _fuzz(frames: list[session_pb2.WorkerFrame]) -> None:
    bench = Bench()
    flights = [bench.seat() for _ in range(3)]
    for number, frame in enumerate(frames, bench.number + 1):
        if frame.number > number:
            frame.number = number  # a gap ends a session, and what comes after it is not read
        bench.session.handle(frame, 1.0)
        bench.session.view(1.0)
    bench.session.give_up()
    for it in flights:
        outcomes = it.over + bench.floor.all.count(it)
        assert outcomes == 1, "ended, or to be tried again, and never both"
        assert it.seat is None


async def test_an_ended_request_gives_its_seat_back(bench: Bench) -> None:
    it = bench.seat()
    bench.say(updates=[bench.update(it, 0, IDS, LENGTH)])
    assert it.over
    assert bench.session.flights() == []


async def test_a_submission_that_cannot_be_written_takes_no_credit(bench: Bench) -> None:
    bench.say(credit=session_pb2.Credit(prefill_tokens=100, sequences=8, kv_blocks=50))
    with pytest.raises(ValueError, match="out of range"):
        bench.session.submit(flight(deadline_s=1e30), COST, 0.0)
    assert bench.session.view(0.0).credit == Cost(100, 8, 50)


async def test_a_lost_frame_breaks_the_session_so_that_what_it_told_is_told_again(bench: Bench) -> None:
    it = bench.seat()
    bench.session.outbox.take()
    bench.say(1.0, updates=[bench.update(it, 0, IDS[:2])])
    heard = bench.session.outbox.acknowledge
    bench.number += 1  # a frame that never came
    bench.say(1.1, updates=[bench.update(it, 3, IDS[3:4])])
    assert bench.session.closed
    assert bench.session.may_come_back
    assert bench.session.outbox.acknowledge == heard, "the worker keeps what was not acknowledged"
    assert (it.ids, bench.session.flights()) == (IDS[:2], [it])
    assert bench.bad("frame_gap") == 1


async def test_a_foreground_grant_is_told_apart_from_what_batch_work_may_have(bench: Bench) -> None:
    more = session_pb2.Credit(prefill_tokens=300, sequences=6, kv_blocks=70)
    bench.say(**grant(), foreground_credit=more)
    bench.seat(latency_class=LatencyClass.INTERACTIVE)
    bench.seat(latency_class=LatencyClass.BATCH)
    view = bench.session.view(0.0)
    assert view.credit == Cost(80, 2, 46)
    assert view.foreground_credit == Cost(290, 5, 68)


def cancelled(bench: Bench, count: int = 1) -> int:
    """Seats that the router has given up; the number of the frame that says so."""
    for it in [bench.seat() for _ in range(count)]:
        bench.session.cancel(it)
    frame = bench.session.outbox.take()
    assert frame is not None
    return frame.number


async def test_a_worker_that_never_answers_a_cancel_keeps_no_seat(bench: Bench) -> None:
    number = cancelled(bench)
    for now in (0.0, ANSWER_S, ANSWER_S + 0.1):
        bench.say(now, acknowledged=number)
        bench.session.check(now)
    assert (bench.session.seated, bench.bad("unanswered_cancel"), bench.session.closed) == (0, 1, False)


async def test_a_cancel_that_the_worker_has_not_heard_of_may_wait(bench: Bench) -> None:
    number = cancelled(bench)
    for now in (0.0, 60.0, 120.0):  # in a step that takes so long
        bench.say(now, acknowledged=number - 1)
        bench.session.check(now)
    assert (bench.session.seated, bench.bad("unanswered_cancel")) == (1, 0)


async def test_a_cancel_that_is_answered_is_no_fault(bench: Bench) -> None:
    it = bench.seat()
    answer = bench.update(it, 0, [], session_pb2.END_REASON_CANCELLED)
    bench.session.cancel(it)
    frame = bench.session.outbox.take()
    assert frame is not None
    bench.say(0.0, acknowledged=frame.number)
    bench.session.check(0.0)
    bench.say(ANSWER_S, updates=[answer])
    bench.session.check(2 * ANSWER_S)
    assert (bench.session.seated, bench.bad("unanswered_cancel"), bench.bad("unknown_slot")) == (0, 0, 0)


async def test_a_worker_that_goes_on_not_answering_is_closed(bench: Bench) -> None:
    number = cancelled(bench, BURST + 1)
    for now in (0.0, ANSWER_S + 0.1):
        bench.say(now, acknowledged=number)
        bench.session.check(now)
    assert bench.session.closed
    assert bench.session.close_error is not None
    assert bench.session.close_error.reason == "BAD_FRAMES"


async def test_a_worker_that_fell_silent_is_blamed_on_nothing_that_came_later(bench: Bench) -> None:
    bench.say(10.0)
    early, late = flight(), flight()
    bench.session.submit(early, COST, 10.1)
    bench.session.submit(late, COST, 10.9)
    bench.session.outbox.take()
    bench.session.check(12.0)
    assert bench.session.closed
    bench.session.give_up()
    assert bench.floor.gone == [(early, Blame.SUSPECTED), (late, Blame.NONE)]


async def test_a_worker_that_did_not_hear_of_a_frame_gets_another_until_it_did(bench: Bench) -> None:
    bench.seat()
    assert bench.session.outbox.take() is not None
    bench.session.check(0.0)
    assert bench.session.outbox.take() is None, "it may be on its way"
    for now in (0.1, 0.2):
        bench.session.check(now)
        assert bench.session.outbox.take() is not None
    bench.say(acknowledged=bench.session.outbox.number)
    bench.session.check(0.3)
    assert bench.session.outbox.take() is None
