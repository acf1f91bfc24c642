"""The measurement of a streamed token's cost: its parts by themselves, and small runs of all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.relay import against_relay, worker
from bench.relay.processes import Child, ChildFailed, cores
from bench.relay.tables import ratios
from bench.relay.trial import Cost
from bench.results_contract import read
from tests.support.tiny_llama import write_tiny_llama
from tests.support.tiny_tokenizer import write_tiny_tokenizer

LIMIT_S = 600


def _cost(cpu_us: float) -> Cost:
    return Cost(cpu_us, cpu_us, 1.0, 10.0, 12.0, 15.0)


def test_ratios_are_of_the_same_round() -> None:
    runs = {"mine": [_cost(10.0), _cost(40.0), _cost(15.0)], "base": [_cost(20.0), _cost(80.0), _cost(60.0)]}
    whole, flow = ratios(runs, "mine", "base", at_most=0.4)
    assert (whole.value, whole.met, whole.spread) == (0.5, False, (0.25, 0.5))
    assert (flow.value, flow.aim) == (0.5, None)


def test_a_child_counts_its_own_cpu_time(tmp_path: Path) -> None:
    program = """if True:
        import time
        while time.process_time() < 0.1: pass
        print('ready', 7, flush=True)
        time.sleep(60)
    """
    child = Child(
        "spinner", [sys.executable, "-c", program], core=cores()[0], scratch=tmp_path, says_port=True
    )
    try:
        assert child.port == 7
        assert child.cpu_s() >= 0.08
    finally:
        child.stop()
    assert not child.running


def test_a_child_that_ends_too_early_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="no such thing"):
        Child(
            "failing", [sys.executable, "-c", "raise SystemExit('no such thing')"],
            core=cores()[0], scratch=tmp_path, says_port=True,
        )  # fmt: skip


ONE, SEVERAL = (1.0, 1.0), (2.0, 4.0)  # tokens a message: a stream's first goes alone


@pytest.mark.parametrize(
    ("what", "cases"),
    [
        ("router", {against_relay.RELAY: ONE, against_relay.ROUTER_1: ONE, against_relay.PLAIN_4: SEVERAL}),
        ("worker", {worker.STREAMS: ONE, worker.SESSION: SEVERAL}),
    ],
)
def test_a_small_run_measures_every_contender(
    what: str, cases: dict[str, tuple[float, float]], tmp_path: Path
) -> None:
    model = tmp_path / "tiny"
    write_tiny_llama(model)
    write_tiny_tokenizer(model)
    command = [sys.executable, "-m", "bench.relay", what, "--dry", "--repeats", "1", "--name", "dry"]
    command += ["--model", str(model), "--results", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = {(each.case, each.metric): each.value for each in read(tmp_path / "dry.json").rows}
    for case, (least, most) in cases.items():
        assert least <= rows[case, "a message"] <= most
    assert all(rows[case, "CPU a token"] > 0 for case in cases)
