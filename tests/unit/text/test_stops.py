from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import given

from services.common.text import StopMatch, StopMatcher

words = st.text(alphabet="ab\né", min_size=1, max_size=4)
texts = st.lists(st.text(alphabet="ab\néx", max_size=5), max_size=12)
stop_lists = st.lists(words, max_size=6)


class Expected(NamedTuple):
    text: str
    match: StopMatch | None


def naive(stops: list[str], pieces: list[str]) -> Expected:
    """Search the whole text again for every end: the first end, of those the longest stop string."""
    whole = "".join(pieces)
    for end in range(1, len(whole) + 1):
        found = [stop for stop in stops if whole[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return Expected(whole[: end - len(longest)], StopMatch(longest, token_of(pieces, end)))
    return Expected(whole, None)


def token_of(pieces: list[str], end: int) -> int:
    length = 0
    for index, piece in enumerate(pieces):
        length += len(piece)
        if length >= end:
            return index
    raise AssertionError


def run(matcher: StopMatcher, pieces: list[str]) -> Expected:
    outcomes = [matcher.push(piece) for piece in pieces] + [matcher.finish()]
    return Expected("".join(outcome.text for outcome in outcomes), outcomes[-1].match)


@given(stop_lists, texts)
def test_what_is_emitted_and_found_equals_a_search_of_the_whole_text(
    stops: list[str], pieces: list[str]
) -> None:
    assert run(StopMatcher(stops), pieces) == naive(stops, pieces)


@given(stop_lists, texts)
def test_no_more_is_held_back_than_could_still_become_a_stop_string(
    stops: list[str], pieces: list[str]
) -> None:
    matcher, whole, emitted = StopMatcher(stops), "", ""
    for piece in pieces:
        outcome = matcher.push(piece)
        if outcome.match:
            return
        whole, emitted = whole + piece, emitted + outcome.text
        beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
        held = max((len(start) for start in beginnings if whole.endswith(start)), default=0)
        assert emitted == whole[: len(whole) - held]


@given(stop_lists, texts, texts)
def test_a_matcher_fed_the_delivered_text_again_goes_on_the_same(
    stops: list[str], before: list[str], after: list[str]
) -> None:
    undisturbed, resumed = StopMatcher(stops), StopMatcher(stops)
    for piece in before:
        undisturbed.push(piece)
        resumed.push(piece)
    assert [undisturbed.push(piece) for piece in after] == [resumed.push(piece) for piece in after]


def test_a_stop_string_across_three_tokens_is_found_at_the_last_of_them() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    outcomes = [matcher.push(piece) for piece in ["Yes.\n", "\nUs", "er: no"]]
    assert [outcome.text for outcome in outcomes] == ["Yes.", "", ""]
    assert outcomes[-1].match == StopMatch("\n\nUser:", 2)


def test_a_stop_string_that_the_last_flush_completes_is_found_at_the_last_token() -> None:
    matcher = StopMatcher(["a\ufffd"], next_index=5)
    assert matcher.push("xa").text == "x"
    assert matcher.finish("\ufffd").match == StopMatch("a\ufffd", 5)


def test_a_false_start_is_released() -> None:
    matcher = StopMatcher(["STOP"])
    assert [matcher.push(piece).text for piece in ["ST", "OR", "M"]] == ["", "STOR", "M"]


def test_many_long_stop_strings_cost_one_step_a_character() -> None:
    stops = ["a" * length + "b" for length in range(1, 300)]
    matcher = StopMatcher(stops)
    assert matcher.push("a" * 50_000).match is None
    assert matcher.push("b").match == StopMatch("a" * 299 + "b", 1)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
