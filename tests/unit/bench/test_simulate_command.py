"""The command from its options to its result, on loads so small that figures mean nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.results_contract import RESULTS, read
from bench.sim.ablation import without
from bench.sim.commands import SUITES
from bench.sim.experiments import Options
from bench.sim.kept import Kept
from bench.sim.play import Table, play_all
from bench.simulate import FULL_SIZE, SEEDS, results_folder, run

SMALL = Options(size=0.01)


def test_a_suite_writes_a_result_with_its_aims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(SUITES["hetero"], SMALL, seeds=2, jobs=1, results=tmp_path)
    result = read(tmp_path / "simulate-hetero.json")
    assert any(each.aim is not None for each in result.rows)
    assert all(each.repeats == 2 for each in result.rows)
    assert "Headrace" in capsys.readouterr().out


def test_only_full_runs_become_figures_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert results_folder(FULL_SIZE, SEEDS) == RESULTS
    assert results_folder(0.05, SEEDS).parent == tmp_path
    assert results_folder(FULL_SIZE, 2).parent == tmp_path
    assert results_folder(0.05, 1, RESULTS) == RESULTS


def test_a_run_that_was_kept_is_not_played_again(tmp_path: Path) -> None:
    suite = SUITES["hetero"]
    whole = suite.make(SMALL)
    match = replace(whole, contenders=whole.contenders[:2])
    keeper = Kept(tmp_path, suite.name, SMALL)
    first, again = (list(play_all(lambda: match, 2, 1, keeper)) for _ in range(2))
    assert again == first  # with the CPU time that it took then
    assert len(list(play_all(lambda: match, 3, 1, keeper))) == 6


def test_a_kept_run_of_another_load_is_not_taken_for_it(tmp_path: Path) -> None:
    whole = SUITES["hetero"].make(SMALL)
    contender, task = whole.contenders[0], whole.tasks(1)[0]
    Kept(tmp_path, "hetero", SMALL).keep(whole.play(task), contender)
    assert Kept(tmp_path, "hetero", SMALL).find(task, contender) is not None
    assert Kept(tmp_path, "hetero", Options(size=0.02)).find(task, contender) is None
    assert Kept(tmp_path, "overload", SMALL).find(task, contender) is None


def test_every_aim_of_routing_is_judged() -> None:
    whole = SUITES["routing"].make(Options(size=0.001))
    match = replace(whole, experiments=[whole.experiments[place] for place in (0, -2, -1)])
    table = Table(match.play(task) for task in match.tasks(seeds=1))
    aims = [each for each in SUITES["routing"].rows(table, match) if each.aim is not None]
    assert [each.metric for each in aims] == [
        "ttft_mean / best",
        "ttft_p99 / best",
        "ttft_p99",
        "e2e_mean / best",
        "goodput / best",
    ]
    assert all(each.met is not None and each.peer for each in aims)


def test_each_part_can_be_left_out() -> None:
    names = [each.name for each in without()]
    assert len(names) == len(set(names)) > 15
    for contender in without():
        policy = contender.variant.policy
        assert policy is None or not policy.validate()
