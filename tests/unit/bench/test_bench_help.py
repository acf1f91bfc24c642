"""Asking a benchmark for help starts and writes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WRITERS = {"collect": "docs/results.md", "calibrate": "bench/calibration/h100-8b.toml"}


@pytest.mark.parametrize(("module", "page"), WRITERS.items())
def test_help_and_wrong_flags_write_nothing(project_root: Path, module: str, page: str) -> None:
    before = (project_root / page).stat().st_mtime_ns
    for flag, code in (("--help", 0), ("--wrong", 2)):
        command = [sys.executable, "-m", f"bench.{module}", flag]
        found = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
        assert (found.returncode, "usage: " in found.stdout + found.stderr) == (code, True)
    assert (project_root / page).stat().st_mtime_ns == before


def test_a_partial_trace_can_be_recorded_under_another_name(project_root: Path) -> None:
    command = [sys.executable, "-m", "bench.scheduler_trace", "--help"]
    assert (
        "--name"
        in subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=True).stdout
    )
