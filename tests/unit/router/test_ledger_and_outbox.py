"""What left and is not acknowledged; what leaves together, in frames of bounded size."""

from __future__ import annotations

from headrace.v1 import session_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.policy import Cost
from services.router.sessions.ledger import Booking, Ledger
from services.router.sessions.outbox import Outbox

FRAME_LIMIT = 64 << 10


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=30), st.integers(0, 40))
def test_only_what_was_acknowledged_leaves_the_ledger(costs: list[tuple[int, int]], upto: int) -> None:
    ledger = Ledger()
    bookings = [Booking(Cost(tokens, 1, blocks), number) for number, (tokens, blocks) in enumerate(costs, 1)]
    for booking in bookings:
        ledger.add(booking)
    ledger.acknowledge(upto)
    rest = bookings[upto:]
    assert ledger.sequences == len(rest)
    assert ledger.prefill_tokens == sum(each.cost.prefill_tokens for each in rest)
    assert ledger.kv_blocks == sum(each.cost.kv_blocks for each in rest)


def test_what_has_not_left_cannot_be_acknowledged() -> None:
    ledger = Ledger()
    ledger.add(Booking(Cost(1, 1, 1)))
    ledger.acknowledge(1 << 60)
    assert ledger.sequences == 1


async def test_commands_of_one_turn_leave_in_one_frame() -> None:
    outbox = Outbox(2)
    booking = Booking(Cost(1, 1, 1))
    outbox.put([session_pb2.Submit(slot=1)], booking)
    outbox.put([session_pb2.Submit(slot=2)])
    outbox.put([session_pb2.Cancel(slot=1)])
    frame = outbox.take()
    assert frame is not None
    assert ([each.slot for each in frame.submits], [each.slot for each in frame.cancels]) == ([1, 2], [1])
    assert frame.number == booking.number == 3
    assert outbox.take() is None


@settings(deadline=None)
@given(st.lists(st.integers(0, 20_000), max_size=40))
def test_frames_keep_to_their_size_and_lose_nothing(sizes: list[int]) -> None:
    outbox = Outbox(2)
    bookings = []
    for slot, size in enumerate(sizes):
        bookings.append(Booking(Cost(size, 1, 1)))
        outbox.put([session_pb2.Submit(slot=slot, kv_key=b"x" * size)], bookings[-1])
    slots, numbers = [], []
    while (frame := outbox.take()) is not None:
        assert frame.ByteSize() <= FRAME_LIMIT
        slots += [each.slot for each in frame.submits]
        numbers += [frame.number] * len(frame.submits)
    assert slots == list(range(len(sizes)))
    assert [each.number for each in bookings] == numbers


async def test_demand_waits_for_a_frame_unless_it_is_urgent() -> None:
    outbox = Outbox(2)
    outbox.demand(session_pb2.Demand(requests=3), urgent=False)
    assert outbox.take() is None
    outbox.demand(session_pb2.Demand(requests=0), urgent=True)
    frame = outbox.take()
    assert frame is not None
    assert frame.HasField("demand")
    assert frame.demand.requests == 0
