"""Work that workers tell is taken as differences, and only as far as it can be true."""

from __future__ import annotations

from headrace.v1 import session_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.policy import LatencyClass
from services.router.sessions.served import LONGEST_S, SLACK_TOKENS, ServedMeter, TenantBook, service_tag

TAG = service_tag(b"t" * 16, LatencyClass.STANDARD)


def told(prompt: int, output: int, tag: bytes = TAG) -> session_pb2.TenantService:
    return session_pb2.TenantService(tenant_tag=tag, prompt_tokens=prompt, output_tokens=output)


def test_totals_become_differences() -> None:
    meter = ServedMeter(0.0)
    assert [tuple(each) for each in meter.differences([told(100, 10)], 1e4, 1.0)] == [(TAG, 100, 10)]
    assert [tuple(each) for each in meter.differences([told(100, 25)], 1e4, 1.1)] == [(TAG, 0, 15)]
    assert meter.faults == 0


def test_a_total_that_falls_counts_for_nothing_and_is_gone_on_from() -> None:
    meter = ServedMeter(0.0)
    meter.differences([told(100, 10)], 1e4, 1.0)
    assert meter.differences([told(50, 10)], 1e4, 1.1) == []
    assert meter.faults == 1
    assert [each.prompt_tokens for each in meter.differences([told(70, 10)], 1e4, 1.2)] == [20]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 63), st.integers(0, 1 << 63), st.floats(-5, 5), st.binary(max_size=17)),
        max_size=30,
    )
)
def test_no_worker_talks_a_tenant_out_of_more_than_it_can_compute(
    frames: list[tuple[int, int, float, bytes]],
) -> None:
    meter, now, passed, counted = ServedMeter(0.0), 0.0, 0.0, 0
    for prompt, output, gap, tag in frames:
        now += gap
        passed += max(0.0, gap)
        for work in meter.differences([told(prompt, output), told(output, prompt, tag)], 1000.0, now):
            counted += work.prompt_tokens + work.output_tokens
            assert work.prompt_tokens >= 0
            assert work.output_tokens >= 0
    assert counted <= SLACK_TOKENS + 1000.0 * min(passed, LONGEST_S * len(frames)) + 1


def test_only_routers_read_whose_work_it_was() -> None:
    book = TenantBook()
    book.note(b"t" * 16, "acme")
    assert book.read(TAG) == ("acme", LatencyClass.STANDARD)
    assert book.read(service_tag(b"u" * 16, LatencyClass.STANDARD)) is None
    assert book.read(b"t" * 16) is None
    assert book.read(b"") is None
    assert service_tag(b"", LatencyClass.BATCH) == b""
