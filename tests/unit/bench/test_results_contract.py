"""Results keep what they claim: where they were measured, their spread, and the aims they missed."""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench.collect import collect
from bench.results_contract import (
    ContractError,
    Row,
    quantity,
    read,
    record,
    row,
    show,
    this_commit,
    this_machine,
)

ROW = row("16 streams", "tokens_per_s", "tok/s", [880.0, 900.0, 930.0])


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=9))
def test_value_is_the_median_within_its_spread(samples: list[float]) -> None:
    found = row("case", "metric", "s", samples)
    assert found.value == statistics.median(samples)
    assert found.spread == (min(samples), max(samples))
    assert found.repeats == len(samples)


@pytest.mark.parametrize(
    "fault",
    [
        {"value": 2000.0},
        {"value": float("nan")},
        {"repeats": 0},
        {"aim": ">= 1"},
        {"met": False},
        {"peer_value": 1.0},
        {"unit": ""},
    ],
    ids=str,
)
def test_a_row_that_does_not_hold_together_is_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        Row(**{**asdict(ROW), **fault})


def test_what_is_recorded_can_be_read_again(tmp_path: Path) -> None:
    written = record("decode", [ROW], packages=["pydantic"], results=tmp_path)
    assert read(tmp_path / "decode.json") == written
    assert written.machine == this_machine()
    assert written.commit == this_commit()
    assert list(written.versions) == ["pydantic"]
    assert written.command.startswith("python ")


def test_the_recorded_command_does_not_say_where_its_results_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["python3", "-m", "bench.moving", "--results", str(tmp_path), "--seeds", "3"]
    monkeypatch.setattr("sys.orig_argv", asked)
    assert record("moving", [ROW], results=tmp_path).command == "python -m bench.moving --seeds 3"


def test_a_broken_file_is_named_with_place_and_fault(tmp_path: Path) -> None:
    record("decode", [ROW], results=tmp_path)
    content = json.loads((tmp_path / "decode.json").read_text())
    content["rows"][0]["repeats"] = 0
    (tmp_path / "decode.json").write_text(json.dumps(content))
    with pytest.raises(ContractError, match=r"decode\.json: rows\.0\.repeats: .*greater than or equal to 1"):
        read(tmp_path / "decode.json")


def test_a_result_under_another_name_is_refused(tmp_path: Path) -> None:
    record("decode", [ROW], results=tmp_path)
    (tmp_path / "decode.json").rename(tmp_path / "prefill.json")
    with pytest.raises(ContractError, match="says prefill, not decode"):
        collect(tmp_path)


def test_without_rich_or_a_checkout_a_result_is_recorded_all_the_same(
    tmp_path: Path, project_root: Path
) -> None:
    copy = tmp_path / "tree" / "bench"
    copy.mkdir(parents=True)
    (copy / "results_contract.py").write_text((project_root / "bench" / "results_contract.py").read_text())
    script = """
import sys
sys.modules.update(dict.fromkeys(("rich", "pydantic")))
from bench.results_contract import record, row
record("decode", [row("1 stream", "rate", "tok/s", [17.0])])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=copy.parent,
        env={"HEADRACE_COMMIT": "abc1234", "PATH": "", "GIT_CEILING_DIRECTORIES": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 stream  rate    17 tok/s" in done.stdout
    assert read(copy / "results" / "decode.json").commit == "abc1234"


def test_page_shows_every_row_and_lists_missed_aims_first(tmp_path: Path) -> None:
    missed = row(
        "1 stream", "tokens_per_s", "tok/s", [17.0], aim=">= peer", met=False, peer="p", peer_samples=[48.0]
    )
    record("decode", [ROW, missed], results=tmp_path)
    page = collect(tmp_path)
    assert "2 rows of 1 benchmarks; 1 aims, 1 missed." in page
    assert page.index("| [decode](#decode) | 1 stream | 17 tok/s | >= peer |") < page.index("## decode")
    assert "| 16 streams | tokens_per_s | 900 tok/s | 880 … 930, n = 3 |  |  |" in page
    assert "| 1 stream | tokens_per_s | 17 tok/s | 17 … 17, n = 1 | p: 48 tok/s | >= peer: MISSED |" in page


def test_a_terminal_of_80_columns_breaks_no_metric_and_shows_no_empty_column(tmp_path: Path) -> None:
    long = row("1 interactive stream beside a prompt of 4096", "p99_beside_to_idle_p50", "tok/s", [1200.0])
    shown = io.StringIO()
    show(record("decode", [long], results=tmp_path, quiet=True), Console(file=shown, width=80))
    lines = shown.getvalue().splitlines()
    assert any("p99_beside_to_idle_p50" in line and "1,200 tok/s" in line for line in lines)
    assert not any("peer" in line for line in lines)


def test_committed_page_is_that_of_the_committed_results(project_root: Path) -> None:
    page = (project_root / "docs" / "results.md").read_text()
    assert page == collect(project_root / "bench" / "results"), "stale page: run `make results`"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.000123456, "0.0001235 s"), (1234567.0, "1,235,000 s"), (0.0, "0 s")]
)
def test_quantities_have_four_digits(value: float, shown: str) -> None:
    assert quantity(value, "s") == shown
