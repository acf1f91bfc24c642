"""What an adapter says is believed only when it can be true."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.peers.outcome import (
    Outcome,
    OutcomeError,
    agreement,
    common,
    disagrees,
    faults,
    parse_reply,
)
from bench.peers.text import unreadable

VOCAB, TOKENS = 100, 4
GOOD = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]]


def outcome(outputs: list[list[int]], **more: Any) -> Outcome:
    """An outcome of 2 s."""
    fields = {"wall_s": 2.0, "cpu_s": 3.0, "outputs": outputs, "ttft_s": [0.1, 0.2, 0.4], "tpot_s": [0.01]}
    return Outcome(**(fields | more))


def test_a_reply_becomes_rates_and_medians() -> None:
    parsed = Outcome.parse(json.dumps(outcome(GOOD)._asdict()))
    assert parsed == outcome(GOOD)
    assert (parsed.tokens, parsed.tokens_per_s, parsed.tokens_per_cpu_s) == (12, 6.0, 4.0)
    assert (parsed.ttft_ms, parsed.tpot_ms) == (200.0, 10.0)


def test_whole_answers_have_no_times_of_their_own() -> None:
    static = outcome(GOOD, ttft_s=[], tpot_s=[])
    assert (static.ttft_ms, static.tpot_ms) == (None, None)


@pytest.mark.parametrize("line", ["", "Loading weights: 100%", "[1]", "null", '"x"'])
def test_what_is_no_json_object_is_refused(line: str) -> None:
    with pytest.raises(OutcomeError):
        parse_reply(line)


@pytest.mark.parametrize(
    "change",
    [{"outputs": None}, {"outputs": [["x"]]}, {"wall_s": "soon"}, {"ttft_s": [None]}, {"cpu_s": None}],
    ids=str,
)
def test_a_field_of_another_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(OutcomeError, match="no outcome"):
        Outcome.parse(json.dumps(outcome(GOOD)._asdict() | change))


def test_a_missing_field_is_named() -> None:
    reply = outcome(GOOD)._asdict()
    del reply["tpot_s"]
    with pytest.raises(OutcomeError, match="tpot_s"):
        Outcome.parse(json.dumps(reply))


def test_a_plausible_outcome_has_no_fault() -> None:
    assert list(faults(outcome(GOOD), 3, TOKENS, VOCAB)) == []


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (outcome(GOOD[:2]), "2 answers to 3 prompts"),
        (outcome([*GOOD[:2], [1, 2, 3]]), "3 tokens, not 4"),
        (outcome([*GOOD[:2], [1, 2, 3, 4, 5]]), "5 tokens, not 4"),
        (outcome([*GOOD[:2], [1, 2, 3, VOCAB]]), "outside the vocabulary"),
        (outcome([*GOOD[:2], [1, 2, 3, -1]]), "id -1"),
        (outcome([[7] * 4, [8] * 4, [1, 2, 3, 4]]), "one token over and over"),
        (outcome([[1, 2, 3, 4]] * 3), "the same answer"),
        (outcome(GOOD, wall_s=0.0), "0.0 s"),
        (outcome(GOOD, cpu_s=0.0), "of CPU"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_true_is_said(wrong: Outcome, word: str) -> None:
    assert word in "; ".join(faults(wrong, 3, TOKENS, VOCAB))


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_common_is_the_length_of_the_longest_shared_beginning(one: list[int], other: list[int]) -> None:
    count = common(one, other)
    assert one[:count] == other[:count]
    assert one[count : count + 1] != other[count : count + 1] or count == len(one) == len(other)


def test_agreement_is_the_median_of_the_prompts() -> None:
    changed = [[1, 2, 3, 5], [0, 6, 7, 8], [9, 9, 9, 9]]
    assert agreement(outcome(GOOD), outcome(changed)) == 0.75
    assert agreement(outcome(GOOD), outcome(GOOD)) == 1.0


def test_a_greedy_repeat_may_round_otherwise_but_not_begin_otherwise() -> None:
    assert disagrees(outcome([[*output[:-1], 0] for output in GOOD]), outcome(GOOD)) is None
    assert disagrees(outcome([[0, *output[1:]] for output in GOOD]), outcome(GOOD))


@pytest.mark.parametrize(
    "texts",
    [
        ["\ufffd\ufffd and so on"],
        ["", " "],
        ["{}[]();;1234 == != ab"],
        ["aaaaaaaaaaaaaaaaaaaaaaaaa"],
        ["a b c d"],
    ],
)
def test_what_does_not_read_like_text_is_noticed(texts: list[str]) -> None:
    assert list(unreadable(texts))


def test_english_reads_like_text() -> None:
    assert (
        list(unreadable(["You may reproduce and distribute copies of the Work,", "subject to terms."])) == []
    )
