"""Figures of interleaved repeats: ratios within a repeat, aims that were missed, a table without holes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.peers.cases import CASES, Aim, Case, chosen, rotated
from bench.peers.figures import Runs, ratios, rows_of
from bench.peers.outcome import Outcome
from bench.peers.peers import ENGINE, OPENVINO, TRANSFORMERS_CB
from bench.peers.table import table

CASE = chosen(["bf16-16"])[0]


def outcome(tokens_per_s: float, ttft_s: tuple[float, ...] = (0.1,)) -> Outcome:
    """100 tokens at this rate on one core."""
    return Outcome(100 / tokens_per_s, 100 / tokens_per_s, [[1] * 100], list(ttft_s), list(ttft_s))


def runs(title: str, *rates: float | None) -> Runs:
    """A rate a repeat; None: it failed."""
    return Runs(title, {repeat: outcome(rate) for repeat, rate in enumerate(rates) if rate})


MEASURED = {
    ENGINE.name: runs("ours 1", 90.0, 200.0, 110.0),
    OPENVINO.name: runs("openvino-genai 2", 100.0, 100.0, None),
}


def test_a_ratio_is_of_one_repeat_and_only_of_those_that_both_have() -> None:
    assert ratios(MEASURED[ENGINE.name], MEASURED[OPENVINO.name], "tokens_per_s") == pytest.approx([0.9, 2.0])


def test_rows_hold_each_figure_and_each_aim_that_could_be_compared() -> None:
    rows = list(rows_of(CASE, MEASURED))
    speed = next(row for row in rows if "ours 1" in row.case and row.metric == "tokens_per_s")
    assert speed.value == pytest.approx(110.0)
    assert (speed.repeats, speed.unit, speed.aim) == (3, "tok/s", None)
    (ratio,) = [row for row in rows if row.aim is not None]
    assert ratio.value == pytest.approx(1.45)
    assert (ratio.aim, ratio.met, ratio.peer, ratio.repeats) == (">= 1", True, "openvino-genai 2", 2)


@pytest.mark.parametrize(("factor", "met"), [(1.44, True), (1.46, False)])
def test_an_aim_is_met_by_the_median_of_the_ratios(factor: float, met: bool) -> None:
    case = replace(CASE, aims=(Aim(ENGINE, OPENVINO, factor),))
    assert [row.met for row in rows_of(case, MEASURED) if row.aim] == [met]


def test_what_was_not_measured_is_not_written() -> None:
    static = {TRANSFORMERS_CB.name: Runs("static", {0: outcome(50.0, ttft_s=())})}
    metrics = {row.metric for row in rows_of(CASE, static)}
    assert metrics == {"tokens_per_s", "tokens_per_cpu_s"}
    assert list(rows_of(CASE, {})) == []


def test_the_table_has_a_line_a_peer_and_says_what_was_missed() -> None:
    case = replace(CASE, aims=(Aim(ENGINE, OPENVINO, 3.0),))
    text = table([(case, MEASURED)])
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == [f"-- {case.title}", "ours 1", "openvino-genai 2"]
    assert len({len(line) for line in (lines[0], *lines[2:4])}) == 1
    assert "90 … 200" in text
    assert "aim >= 3: MISSED" in text


def test_how_alike_repeats_are_is_the_least_of_them() -> None:
    outcomes = [outcome(1.0)._replace(outputs=[ids]) for ids in ([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 0, 0])]
    assert Runs("ours", dict(enumerate(outcomes))).same == 0.5
    assert Runs("ours", {0: outcomes[0]}).same is None


def test_each_repeat_begins_with_another() -> None:
    turns = [rotated("abc", turn) for turn in range(4)]
    assert turns == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    assert rotated([], 3) == []


def test_cases_are_chosen_by_key() -> None:
    assert chosen([]) == CASES
    assert [case.key for case in chosen(["int8-16", "bf16-1"])] == ["int8-16", "bf16-1"]
    with pytest.raises(ValueError, match="no case nonsense; there are bf16-16"):
        chosen(["nonsense"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_aims_are_about_entries_of_their_case(case: Case) -> None:
    peers = {entry.peer for entry in case.entries}
    assert peers >= {peer for aim in case.aims for peer in (aim.ours, aim.peer)}
    assert len(case.entries) == len(peers)
