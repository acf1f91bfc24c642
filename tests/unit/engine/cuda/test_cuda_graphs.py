"""Which bucket a step runs in, and which are captured when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.engine.torch.cuda.graphs import Graphs, decode_sizes
from services.worker.engine.torch.cuda.inputs import Bucket


class Tape:
    """A `Graph` that says of which bucket it is."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def replay(self) -> None:
        raise AssertionError("nothing is run here")


def graphs_of(max_seqs: int, step_tokens: int, *, all_of_them: bool) -> tuple[Graphs, list[Bucket]]:
    made: list[Bucket] = []

    def capture(bucket: Bucket) -> Tape:
        made.append(bucket)
        return Tape(bucket)

    graphs = Graphs(capture, max_seqs, step_tokens)
    graphs.capture_first()
    while all_of_them and graphs.capture_next():
        pass
    return graphs, made


def test_a_few_at_the_start_and_the_rest_when_idle() -> None:
    _, first = graphs_of(256, 8448, all_of_them=False)
    assert [bucket.tokens for bucket in first] == [1024, 256, 256, 64, 16, 4, 1]
    graphs, made = graphs_of(256, 8448, all_of_them=True)
    assert made[: len(first)] == first
    assert len(set(made)) == len(made) == graphs.planned
    assert {bucket.rows for bucket in made if bucket.decodes} >= {1, 2, 4, 8, 16, 32, 64, 128, 256, 24, 144}


def test_none_where_steps_cannot_be_captured() -> None:
    graphs = Graphs(None, 8, 512)
    graphs.capture_first()
    assert not graphs.capture_next()
    assert graphs.fitting(1, 1) is None


@pytest.mark.parametrize("max_seqs", [1, 2, 3, 7, 8, 100, 256, 1000])
def test_decode_sizes_rise_to_the_number_of_slots(max_seqs: int) -> None:
    sizes = decode_sizes(max_seqs)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_seqs


@given(
    max_seqs=st.integers(1, 300),
    rows=st.integers(1, 300),
    more=st.integers(0, 1500),
    all_of_them=st.booleans(),
)
def test_a_step_fits_its_bucket_and_no_smaller_one_would_do(
    max_seqs: int, rows: int, more: int, all_of_them: bool
) -> None:
    rows = min(rows, max_seqs)
    graphs, made = graphs_of(max_seqs, 2048, all_of_them=all_of_them)
    fitting = graphs.fitting(rows, rows + more)
    same_kind = [bucket for bucket in made if bucket.decodes == (more == 0) and bucket.tokens >= rows + more]
    if more == 0:
        assert fitting is not None, "any number of decodes has a graph"
    if fitting is None:
        assert not any(bucket.tokens * 0.75 <= rows + more for bucket in same_kind)
        return
    bucket, graph = fitting
    assert isinstance(graph, Tape)
    assert graph.bucket == bucket
    assert bucket.rows >= rows
    assert bucket.tokens == min(other.tokens for other in same_kind)
