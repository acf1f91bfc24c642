"""`python -m services.worker` with the torch engine on a tiny random Llama: start, serve, drain, die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from headrace.v1 import session_pb2 as pb
from headrace.v1 import types_pb2

from services.worker.engine.errors import EngineHangs
from services.worker.engine.watch import TICK_S
from tests.support.session_router import RouterSession, SessionRouter
from tests.support.waiting import eventually
from tests.support.worker_service import write_model, write_secret

ROOT = Path(__file__).parent.parent.parent.parent
ENDLESS = types_pb2.SamplingParams(ignore_eos=True)
PROMPT = [11, 12, 13, 14]


class WorkerProcess:
    """A real worker."""

    def __init__(self, directory: Path, router: str, *flags: str) -> None:
        self.log = directory / "worker.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [
                    *(sys.executable, "-m", "services.worker"),
                    f"--model={write_model(directory / 'model')}",
                    f"--routers={router}",
                    f"--mesh-secret-file={write_secret(directory)}",
                    *("--device=cpu", "--dtype=float32", "--threads=1", "--kv-blocks=128"),
                    *("--log-format=json", "--drain-timeout-s=4"),
                    *flags,
                ],
                cwd=ROOT,
                env=clean,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def engine_pid(self) -> int:
        """The process that computes: the child that runs multiprocessing's spawn_main."""
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()
        found = [
            int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        assert len(found) == 1
        return found[0]

    async def ended(self) -> int:
        await eventually(lambda: self.popen.poll() is not None, f"the worker ends:\n{self.text()}", 120)
        return int(self.popen.returncode)

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()


@pytest_asyncio.fixture
async def process(tmp_path: Path, router: SessionRouter) -> AsyncIterator[WorkerProcess]:
    started = WorkerProcess(tmp_path, router.address)
    yield started
    started.close()


@pytest_asyncio.fixture
async def served(router: SessionRouter, process: WorkerProcess) -> RouterSession:
    await eventually(
        lambda: router.session or process.popen.poll() is not None, f"attached:\n{process.text()}", 120
    )
    assert process.popen.poll() is None, process.text()
    return await router.attached()


async def test_a_real_model_answers_the_same_alone_in_company_and_resumed(served: RouterSession) -> None:
    alone = await served.submit(PROMPT, max_tokens=40, sampling=ENDLESS).ended()
    assert len(alone.tokens) == 40
    crowd = [served.submit([*PROMPT, each], max_tokens=20, sampling=ENDLESS) for each in range(15)]
    again = served.submit(PROMPT, max_tokens=40, sampling=ENDLESS)
    resumed = served.submit(
        PROMPT, max_tokens=40, sampling=ENDLESS, attempt=2, delivered_ids=alone.tokens[:17]
    )
    for record in (*crowd, again, resumed):
        await record.ended()
    assert again.tokens == alone.tokens
    assert resumed.tokens == alone.tokens[17:]
    assert again.end is not None
    assert again.end.usage.cached_tokens == 0  # shorter than a block
    await served.idle()


async def test_log_probabilities_travel(served: RouterSession) -> None:
    sampling = types_pb2.SamplingParams(ignore_eos=True, logprobs=3)
    record = await served.submit(PROMPT, max_tokens=5, sampling=sampling).ended()
    assert len(record.logprobs) == len(record.tokens) == 5
    for token, position in zip(record.tokens, record.logprobs, strict=True):
        assert len(position.top) == 3
        assert position.top[0].token_id == token
        assert position.chosen == position.top[0].logprob < 0


async def test_a_prompt_that_ran_before_is_found(served: RouterSession) -> None:
    prompt = [20 + each % 100 for each in range(300)]
    first = await served.submit(prompt, max_tokens=4, sampling=ENDLESS).ended()
    second = await served.submit(prompt, max_tokens=4, sampling=ENDLESS).ended()
    assert second.tokens == first.tokens
    assert second.end is not None
    assert second.end.usage.cached_tokens == 256
    told = sum(len(frame.kv_events.events) for frame in served.frames)
    assert told >= 4


async def test_a_dead_engine_ends_the_worker_with_the_reason(
    process: WorkerProcess, served: RouterSession
) -> None:
    record = served.submit(PROMPT, max_tokens=1500, sampling=ENDLESS)
    await record.has(3)
    os.kill(process.engine_pid(), signal.SIGKILL)
    assert await process.ended() != 0
    assert "engine_died" in process.text()
    await eventually(lambda: not served.open, "the session ends")
    assert not record.over


@pytest.mark.parametrize("whole_group", [False, True], ids=["the worker", "the engine, too"])
async def test_a_stop_signal_gives_back_what_runs_and_ends_well(
    process: WorkerProcess, served: RouterSession, whole_group: bool
) -> None:
    record = served.submit(PROMPT, max_tokens=1900, sampling=ENDLESS)
    await record.has(3)
    if whole_group:
        os.kill(process.engine_pid(), signal.SIGTERM)
    process.popen.send_signal(signal.SIGTERM)
    await record.ended()
    assert await process.ended() == 0
    if record.returned is None:  # a fast machine
        assert record.end is not None
        assert record.end.reason == pb.END_REASON_LENGTH
    assert served.half_closed


async def test_a_router_sends_a_worker_away(process: WorkerProcess, served: RouterSession) -> None:
    served.send(drain=pb.DrainRequest(grace_ms=500))
    assert await process.ended() == 0


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--engine=abacus"], 2, "HEADRACE_WORKER_ENGINE (--engine) = 'abacus': Input should be"),
        (["--model=/nowhere"], 1, "headrace: worker: no model '/nowhere'"),
        (["--listen=10.0.0.1:0"], 2, "is not a loopback address and has no TLS"),
    ],
)
async def test_what_cannot_start_says_why_in_one_line(
    tmp_path: Path, router: SessionRouter, flags: list[str], code: int, said: str
) -> None:
    worker = WorkerProcess(tmp_path, router.address, *flags)
    try:
        assert await worker.ended() == code
        (line,) = [each for each in worker.text().splitlines() if each.startswith("headrace:")]
        assert said in line
        assert "Traceback" not in worker.text()
    finally:
        worker.close()


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_worker_whose_engine_hangs_says_so_and_ends(tmp_path: Path, router: SessionRouter) -> None:
    hangs = ("--engine=simulated", "--simulated-hang-at-token=60", "--hang-s=0.5")
    process = WorkerProcess(tmp_path, router.address, *hangs)
    try:
        session = await router.attached()
        engine = process.engine_pid()
        session.submit(PROMPT, max_tokens=100, sampling=ENDLESS)
        assert await process.ended() == EngineHangs.exit_code
        assert "engine_hangs" in process.text()
        assert not is_there(engine)
    finally:
        process.close()


async def test_a_worker_whose_engine_was_stopped_and_goes_on_stays(
    tmp_path: Path, router: SessionRouter
) -> None:
    process = WorkerProcess(tmp_path, router.address, "--hang-s=2.5")
    try:
        session = await router.attached()
        record = session.submit(PROMPT, max_tokens=400, sampling=ENDLESS)
        await record.has(40)
        os.kill(process.engine_pid(), signal.SIGSTOP)
        again_s = time.monotonic() + 4 * TICK_S  # it looks that often, and may not find it hung
        await eventually(lambda: time.monotonic() > again_s, "some moments pass")
        os.kill(process.engine_pid(), signal.SIGCONT)
        await record.ended()
        assert process.popen.poll() is None
    finally:
        process.close()
