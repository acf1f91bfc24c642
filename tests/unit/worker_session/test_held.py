"""What a worker still keeps when it attaches again is told in one frame, however much it is."""

from __future__ import annotations

import zlib

from headrace.v1 import session_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.session.held import tell_held
from services.worker.session.job import Job

ROOM = 62 << 10
"""Of a frame, beside what else a Hello says."""
U32, U64 = 2**32 - 1, 2**64 - 1


def job(handle: int, name: str, slot: int, made: int) -> Job:
    return Job(handle, pb.Submit(slot=slot, request_id=name, attempt=1, next_index=made))


def told(jobs: list[Job]) -> pb.Hello:
    hello = pb.Hello()
    tell_held(hello, jobs)
    return hello


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 6000),
    st.sampled_from(["r", "0" * 36, "\U0001f300" * 256]),
    st.sampled_from([(1, 1, 1), (5000, 5000, 5000), (U64 - 6000, U32 - 6000, U32)]),
)
def test_it_fits_a_frame_whatever_it_is(count: int, name: str, numbers: tuple[int, int, int]) -> None:
    handle, slot, made = numbers
    hello = told([job(handle + each, name, slot + each, made) for each in range(count)])
    assert hello.ByteSize() <= ROOM
    more = hello.held_more
    columns = (more.names, more.attempts, more.next_indices, more.slots, more.handles)
    assert len(set(map(len, columns))) == 1
    assert [each.slot for each in hello.held] + list(more.slots) == [
        slot + each for each in range(len(hello.held) + len(more.slots))
    ]


def test_thousands_are_told_whole() -> None:
    jobs = [job(100_000 + each, f"{each:036d}", 50_000 + each, each) for each in range(2500)]
    hello = told(jobs)
    assert len(hello.held) + len(hello.held_more.names) == len(jobs)
    last, more = jobs[-1], hello.held_more
    assert (more.names[-1], more.attempts[-1], more.next_indices[-1], more.slots[-1], more.handles[-1]) == (
        zlib.crc32(last.request_id.encode()),
        last.attempt,
        last.made,
        last.slot,
        last.handle,
    )


def test_a_few_are_told_with_their_names_as_every_router_reads_them() -> None:
    hello = told([job(7, "a", 3, 5)])
    assert list(hello.held) == [pb.HeldRequest(request_id="a", attempt=1, next_index=5, slot=3, handle=7)]
    assert not hello.HasField("held_more")
