"""Watches the worker's GPU from a task of its own, beside the sessions and far from the steps.

    every INTERVAL_S: probe in a daemon thread ──▶ reading ──▶ collector
                                              └──▶ failed or hung: counted, and tried again

A driver can hang for good and cannot be told to stop. So one thread waits for it, nobody waits for that
thread longer than PATIENCE_S, and no second one is started while the first hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from services.common import logs
from services.worker.engine.report import Work
from services.worker.gpu.collector import INTERVAL_S, Said
from services.worker.gpu.model_size import ModelSize
from services.worker.gpu.probe import NoTelemetry, Probe, Reading
from services.worker.gpu.utilisation import Meter, Utilisation
from services.worker.metrics import WorkerMetrics

PATIENCE_S = 2.0
log = logs.get(__name__)


class Patient:
    """Runs one call at a time in a daemon thread, which holds up no exit.

    A call that outlives its patience keeps its thread; until it ends, further calls time out at once.
    """

    def __init__(self) -> None:
        self._running: asyncio.Future[Reading] | None = None

    async def call(self, work: Callable[[], Reading], patience_s: float) -> Reading:
        """What `work` returns or raises. Raises TimeoutError. Cancelling leaves the thread alone."""
        if self._running is not None and not self._running.done():
            raise TimeoutError("the call before still runs")
        self._running = found = asyncio.get_running_loop().create_future()
        threading.Thread(target=_deliver, args=(work, found), name="gpu-telemetry", daemon=True).start()
        return await asyncio.wait_for(asyncio.shield(found), patience_s)


class Telemetry:
    """One GPU and what its engine does there, told to the worker's metrics.

    Args:
        config: of the model, as config.json has it.
        dtype: of the products, as EngineDescription has it.
    """

    def __init__(
        self,
        probe: Probe,
        metrics: WorkerMetrics,
        config: dict[str, Any],
        dtype: str,
        *,
        interval_s: float = INTERVAL_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._probe = probe
        self._metrics = metrics
        self._size = _size(config)
        self._dtype = dtype
        self._interval_s = interval_s
        self._patience_s = patience_s
        self._before: tuple[Work, float] | None = None

    async def run(self) -> None:
        """Watch until cancelled, or until it is clear that there is nothing to read here."""
        patient = Patient()
        while True:
            try:
                self._tell(await patient.call(self._probe.read, self._patience_s))
            except NoTelemetry as error:
                log.info("gpu_telemetry_absent", reason=str(error))
                return
            except TimeoutError:
                self._failed("hung", f"no answer in {self._patience_s:g} s")
            except Exception as error:  # whatever a driver does, the worker serves on
                self._failed("error", f"{type(error).__name__}: {error}")
            await asyncio.sleep(self._interval_s)

    def _tell(self, reading: Reading) -> None:
        work = self._metrics.work
        copied = None if work is None else work.host_to_device_bytes or None
        self._metrics.gpu.say(Said(reading, self._utilisation(reading, work), copied))

    def _utilisation(self, reading: Reading, work: Work | None) -> Utilisation | None:
        if work is None or self._size is None:
            return None
        now = asyncio.get_running_loop().time()
        before, self._before = self._before, (work, now)
        if before is None:
            return None
        return Meter(self._size, self._dtype, reading.card).between(before[0], work, now - before[1])

    def _failed(self, kind: str, reason: str) -> None:
        self._metrics.telemetry_failures.labels(kind).inc()
        log.warning("gpu_telemetry_failed", kind=kind, reason=reason)


def _size(config: dict[str, Any]) -> ModelSize | None:
    try:
        return ModelSize.of(config)
    except KeyError:
        return None


def _deliver(work: Callable[[], Reading], found: asyncio.Future[Reading]) -> None:
    """In the thread: run, and give the outcome to the loop that waits, if it still does."""
    loop = found.get_loop()
    try:
        outcome: Reading | Exception = work()
    except Exception as error:
        outcome = error
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(_settle, found, outcome)


def _settle(found: asyncio.Future[Reading], outcome: Reading | Exception) -> None:
    if isinstance(outcome, Exception):
        found.set_exception(outcome)
        found.exception()  # seen: nobody may be left to ask
    else:
        found.set_result(outcome)
