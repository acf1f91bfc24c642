"""Where an engine runs: a spawned process (default), or a thread of this one with the same pipe (tests).

The engine ends when it is told to, when its pipe breaks because the parent is gone, or when it fails; in each
case its end of the pipe closes, which is all that the client has to notice.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import traceback
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from services.common.leash import die_with
from services.worker.engine.base import LoadedEngine
from services.worker.engine.errors import EngineDied, EngineLoadError
from services.worker.engine.load import EngineLoader
from services.worker.engine.loop import EngineLoop
from services.worker.engine.settings import EngineSettings


class EngineHost(Protocol):
    """What holds a running engine."""

    def join(self, timeout_s: float) -> None:
        """Wait for the end, at most `timeout_s`."""

    def kill(self) -> None:
        """End it now where that is possible. Idempotent."""

    def epitaph(self) -> str:
        """How it ended, for a log line."""

    def stopped(self) -> bool:
        """Whether a signal or a debugger holds it up, as far as the system says."""


def host_engine(
    settings: EngineSettings, loader: EngineLoader, *, in_process: bool
) -> tuple[EngineHost, Connection]:
    """Start an engine; its first message is an EngineDescription or an EngineError."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=True)
    if in_process:
        return _ThreadHost(theirs, settings, loader), ours
    process = context.Process(
        target=_process_main,
        args=(theirs, settings, loader, os.getpid()),
        name="headrace-engine",
        daemon=True,
    )
    process.start()
    theirs.close()
    return _ProcessHost(process), ours


def run_engine(connection: Connection, settings: EngineSettings, loader: EngineLoader) -> None:
    """Load, say so, serve until the end. Failures are the last message on the pipe."""
    with connection:
        try:
            engine = loader(settings)
        except EngineLoadError as error:
            _last_words(connection, error)
            return
        except Exception as error:
            _last_words(connection, EngineLoadError(f"cannot load {settings.model}: {_brief(error)}"))
            return
        try:
            connection.send(engine.description)
            EngineLoop(engine, settings.scheduler, connection).run()
        except (EOFError, ConnectionError):
            pass  # the parent is gone
        except Exception as error:
            traceback.print_exc()
            _last_words(connection, EngineDied(f"the engine failed: {_brief(error)}"))
        finally:
            engine.runner.close()


def _process_main(
    connection: Connection, settings: EngineSettings, loader: EngineLoader, parent: int
) -> None:
    die_with(parent, signal.SIGKILL)  # a step that hangs never sees its pipe break
    # With fewer threads than were set, torch's products leave parts of what they return unwritten.
    for variable in ("OMP_DYNAMIC", "OMP_THREAD_LIMIT"):
        os.environ.pop(variable, None)
    # Before torch is imported: threads spin at barriers for some 50 µs, then sleep. A step of 16 sequences
    # takes 1.7 times as long on two quiet cores without any spinning, and ten times as long with much of it
    # while a neighbour holds one of them.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for asked in (signal.SIGINT, signal.SIGTERM):  # may reach the whole group; the parent drains us
        signal.signal(asked, signal.SIG_IGN)
    run_engine(connection, settings, partial(_load_for_good, loader))


def _load_for_good(loader: EngineLoader, settings: EngineSettings) -> LoadedEngine:
    """Load. What is there then lives as long as the process, so no collection of garbage walks it: one that
    does holds up a step for 20 ms with numpy alone, and the start for half a second with torch and numba."""
    gc.disable()
    try:
        return loader(settings)
    finally:
        gc.freeze()
        gc.enable()


def _last_words(connection: Connection, error: Exception) -> None:
    with contextlib.suppress(OSError):
        connection.send(error)


def _brief(error: Exception) -> str:
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"


class _ProcessHost:
    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        atexit.register(process.kill)  # before multiprocessing asks a daemon to end and waits for it

    def join(self, timeout_s: float) -> None:
        self._process.join(timeout_s)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        atexit.unregister(self._process.kill)

    def epitaph(self) -> str:
        self._process.join(1.0)
        return f"exit code {self._process.exitcode}"

    def stopped(self) -> bool:
        try:
            state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return False
        return state in ("T", "t")


class _ThreadHost:
    def __init__(self, connection: Connection, settings: EngineSettings, loader: EngineLoader) -> None:
        self._thread = threading.Thread(
            target=run_engine, args=(connection, settings, loader), name="headrace-engine", daemon=True
        )
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def kill(self) -> None:
        """A thread cannot be killed; it ends when it finds its pipe closed."""

    def epitaph(self) -> str:
        return "engine thread"

    def stopped(self) -> bool:
        return False
