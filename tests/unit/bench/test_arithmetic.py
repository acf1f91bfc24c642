"""FLOPs and bytes are those of the model's matrices, counted once for each token that had to be computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.arithmetic import ModelSize, Useful, bytes_read, flops
from bench.shapes import SHAPES, config_of

SHAPE = SHAPES["60m"]
SIZE = ModelSize.of(config_of(SHAPE))


def test_size_is_that_of_the_configuration() -> None:
    embedding, norms = SHAPE.vocab * SHAPE.hidden, (2 * SHAPE.layers + 1) * SHAPE.hidden
    assert SIZE.head_weights == embedding
    assert SIZE.layer_weights + SIZE.head_weights + embedding + norms == SHAPE.parameters
    assert SIZE.kv_values == 2 * 8 * 4 * 64


@given(st.integers(1, 50), st.integers(1, 50), st.data())
def test_useful_work_is_that_of_each_token_fed_in(prompt: int, outputs: int, data: st.DataObject) -> None:
    cached = data.draw(st.integers(0, prompt - 1))
    fed = range(cached, prompt + outputs - 1)  # positions
    assert Useful.of([(prompt, cached, outputs)]) == Useful(
        tokens=len(fed),
        outputs=outputs,
        pairs=sum(position + 1 for position in fed),
        decode_reads=sum(position + 1 for position in fed if position >= prompt),
    )


def test_useful_work_adds_up() -> None:
    first, second = Useful.of([(5, 0, 3)]), Useful.of([(7, 2, 1)])
    assert Useful.of([(5, 0, 3), (7, 2, 1)]) == Useful(*(a + b for a, b in zip(first, second, strict=True)))


def test_one_token_costs_two_flops_a_weight_and_reads_each_weight_once() -> None:
    one = Useful(tokens=1, outputs=1, pairs=0, decode_reads=0)
    weights = SIZE.layer_weights + SIZE.head_weights
    assert flops(SIZE, one) == 2.0 * weights
    assert bytes_read(SIZE, one, steps=3, weight_bytes=2.0, kv_bytes=2.0) == 3 * 2.0 * weights


def test_attention_and_its_kv_are_counted_by_tokens_read() -> None:
    work = Useful(tokens=0, outputs=0, pairs=10, decode_reads=10)
    assert flops(SIZE, work) == pytest.approx(10 * 4 * 8 * 8 * 64)
    assert bytes_read(SIZE, work, steps=0, weight_bytes=2.0, kv_bytes=2.0) == 10 * 2.0 * SIZE.kv_values
