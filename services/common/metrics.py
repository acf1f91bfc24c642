"""The /metrics endpoint. Each service declares its own metrics beside the code that counts."""

from __future__ import annotations

import asyncio
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator
from threading import Thread
from typing import NamedTuple
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from services.common.seldom import Seldom
from services.common.tallies import Spreads, Tallies

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


def from_zero(counter: Counter, values: Iterable[str]) -> None:
    """Shows a counter of one label before its first events: a rate misses the event that makes a row."""
    for value in values:
        counter.labels(value)


class Endpoint(NamedTuple):
    """A running /metrics endpoint."""

    port: int
    close: Callable[[], None]


def new_registry() -> CollectorRegistry:
    """A registry of one service, with the process's own CPU time, memory and descriptors."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a time beside every counter that nobody asks for
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class TaskCollector(Collector):
    """Tasks of an event loop by what they run, counted when somebody asks: what leaks shows by its name."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        """Those of open calls included."""
        family = GaugeMetricFamily("headrace_tasks", "Tasks of the loop by what they run", labels=["of"])
        for name, count in Counts(map(_runs, asyncio.all_tasks(self._loop))).items():
            family.add_metric([name], count)
        yield family


def _runs(task: asyncio.Task[object]) -> str:
    return str(getattr(task.get_coro(), "__qualname__", "unknown"))


def serve(registry: CollectorRegistry, host: str, port: int) -> Endpoint:
    """Serves the registry over HTTP from a thread of its own. Raises OSError when the port is taken."""
    server: WSGIServer
    thread: Thread
    server, thread = start_http_server(port, addr=host, registry=registry)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join(timeout=2)

    return Endpoint(server.server_port, close)


class RpcMetrics:
    """Counts and times RPCs of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Tallies(
            "headrace_rpc_calls", "RPCs that ended, by method and status", ["method", "code"], registry
        )
        self.seconds = Spreads(
            "headrace_rpc_seconds",
            "Duration of RPCs, streams until their end",
            ["method"],
            registry,
            buckets=LATENCY_BUCKETS_S,
        )
        self.seldom = Seldom()
        """For reports of what these count."""
        self.strangers = Counter(
            "headrace_strangers", "Calls without a valid member token or proof", ["method"], registry=registry
        )
