"""Reports out of the engine, and heartbeats between them.

A step may take longer than the heartbeat interval (a long prompt on a CPU), so a thread of its own keeps the
time. What it says is what the loop last said, without the news: `progress` stands still while a step hangs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Self

from services.worker.engine.report import Progress, StepReport, TokenReport
from services.worker.engine.wire import packed

HEARTBEAT_S = 0.2


class Outbox:
    """The sending half of the engine's pipe; used by the loop and by the heartbeat thread."""

    def __init__(self, connection: Connection, interval_s: float = HEARTBEAT_S) -> None:
        self._connection = connection
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._last: StepReport | None = None  # what a heartbeat repeats, but for its news
        self._progress: Progress | None = None  # of steps after that one
        self._sent_s = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="engine-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def send(self, report: StepReport) -> None:
        """Send news. Raises OSError when the other side is gone."""
        with self._lock:
            self._last, self._progress = report, None
            self._write(report)

    def send_tokens(self, report: TokenReport) -> None:
        """Send the news of a step with nothing else. Raises OSError when the other side is gone."""
        with self._lock:
            self._progress = report.progress
            self._write(report)

    def mark_busy(self) -> None:
        """A step begins: heartbeats until its report say that there is work."""
        with self._lock:
            if self._progress is None and self._last is not None and not self._last.progress.has_work:
                progress = self._last.progress._replace(has_work=True, last_finished_s=time.monotonic())
                self._last = replace(self._last, progress=progress)

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # the loop notices the same end
            while not self._closed.wait(self._until_due()):
                with self._lock:
                    self._beat_if_due()

    def _until_due(self) -> float:
        return max(0.001, self._sent_s + 0.8 * self._interval_s - time.monotonic())

    def _beat_if_due(self) -> None:
        if self._last is not None and self._until_due() <= 0.001:
            self._last = self._last.without_news()
            if self._progress is not None:
                progress = self._progress._replace(work=self._last.progress.work)
                self._last, self._progress = replace(self._last, progress=progress), None
            self._write(self._last)

    def _write(self, report: StepReport | TokenReport) -> None:
        self._sent_s = time.monotonic()
        self._connection.send_bytes(packed(report))
