"""The calibration files are what their derivation gives, and what the simulated engine reads."""

from __future__ import annotations

import pytest

from bench.calibrate import DIRECTORY, files
from services.worker.engine.simulated.calibration import read_calibration
from services.worker.scheduler.step import StepCost


def test_committed_files_are_those_of_their_derivation() -> None:
    committed = {path.name: path.read_text() for path in DIRECTORY.glob("*.toml")}
    assert committed == files(), "stale: run `python -m bench.calibrate`"


@pytest.mark.parametrize("name", sorted(files()))
def test_each_file_gives_a_device_that_can_serve(name: str) -> None:
    calibration = read_calibration(DIRECTORY / name)
    assert calibration.kv_tokens > 4096
    alone_s = calibration.step.of(StepCost(1.0, 1.0, 0.0, 1000.0, 1.0))
    assert calibration.weights_bytes / alone_s < 4.8e12, "faster than the fastest memory"


def test_the_h100_with_8b_is_that_of_the_published_roofline() -> None:
    step = read_calibration(DIRECTORY / "h100-8b.toml").step
    assert step.of(StepCost(1.0, 1.0, 0.0, 1000.0, 1.0)) == pytest.approx(7.1e-3, rel=0.02)
    assert step.of(StepCost(1.0, 64.0, 0.0, 65536.0, 64.0)) == pytest.approx(11.4e-3, rel=0.02)
    assert 2048 / step.of(StepCost(1.0, 2048.0, 0.0, 0.0, 0.0)) == pytest.approx(36.3e3, rel=0.02)
