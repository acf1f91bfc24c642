"""An adapter's process: bound to its cores, asked by JSON lines, bounded in time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bench.peers.adapters.loop import Config, Job
from bench.peers.outcome import Outcome, OutcomeError, parse_reply

ROOT = Path(__file__).parent.parent.parent
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_TAIL = 3  # lines of the log in an error


class PeerFailed(RuntimeError):
    """A peer that ended, hung, or said what is no outcome; one line."""


class Limits(NamedTuple):
    """Seconds."""

    start_s: float = 420.0  # until it can take jobs
    job_s: float = 240.0
    end_s: float = 40.0  # from the end of its input until it is killed


_DEFAULT = Limits()


class PeerProcess:
    """A running adapter. `close` it; what it started ends with it.

    Args:
        command: what runs the adapter.
        log: file for everything that the peer prints.
        limits: how long it may take.

    Raises:
        PeerFailed: it did not start.
    """

    def __init__(
        self, command: Sequence[str], config: Config, log: Path, limits: Limits | None = None
    ) -> None:
        self._log = log
        self._limits = limits or Limits()
        self._rest = b""
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, config.cores),
            )
        try:
            ready = self._ask(asdict(config), self._limits.start_s)
        except BaseException:
            self.close()
            raise
        self.versions: dict[str, str] = ready["versions"]

    def run(self, job: Job) -> Outcome:
        """One job. Raises PeerFailed."""
        reply = self._ask(job._asdict(), self._limits.job_s)
        try:
            return Outcome.parse(json.dumps(reply))
        except OutcomeError as error:
            raise PeerFailed(str(error)) from None

    def close(self) -> None:
        """Asks it to end, then ends its whole process group. Idempotent."""
        if self._process.stdin:
            with contextlib.suppress(OSError):  # it is gone already
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._limits.end_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def _ask(self, message: dict[str, Any], limit_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._failure("it ended") from None
        try:
            return parse_reply(self._line(time.monotonic() + limit_s, limit_s).decode())
        except OutcomeError as error:
            raise self._failure(str(error)) from None

    def _line(self, end_s: float, limit_s: float) -> bytes:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            if not select.select([pipe], [], [], max(0.0, end_s - time.monotonic()))[0]:
                raise self._failure(f"no reply after {limit_s:g} s")
            if not (part := os.read(pipe, 1 << 20)):
                raise self._failure("it ended")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _failure(self, what: str) -> PeerFailed:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return PeerFailed(f"{what}; {self._log} ends with: {' | '.join(lines[-_TAIL:])[-400:]}")


def adapter_command(python: Path, adapter: str) -> list[str]:
    """Runs a module below bench.peers.adapters by an environment's interpreter."""
    return [str(python), "-m", f"bench.peers.adapters.{adapter}"]


def environment() -> dict[str, str]:
    """Of an adapter: offline, no setting from outside. Thread counts are its own matter, in its cores."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HEADRACE_", "OMP_"))}
    return inherited | OFFLINE
