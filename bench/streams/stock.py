"""What all processes hold for requests: nothing, once every stream has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client.samples import Sample

from bench.results_contract import Row, row
from bench.scrape import scrape, total
from bench.streams.mesh import StreamMesh

ROUTERS, WORKERS, BLOCKS = "in routers", "in workers", "KV blocks"
HELD = {
    "calls in routers": "headrace_requests_running",
    "flights in routers": "headrace_flights",
    "seats in routers": "headrace_seats",
    "waiting in routers": "headrace_queue_depth",
    "jobs in workers": "headrace_worker_jobs",
    "sequences in workers": "headrace_worker_requests",
    "KV blocks": "headrace_worker_kv_blocks",
}
_TASKS = "headrace_tasks"
_POLL_S = 0.1


class Stock(NamedTuple):
    """At one moment."""

    held: dict[str, float]  # over all processes
    tasks: dict[str, float]  # by process and what they run

    def surplus(self, before: Stock) -> dict[str, float]:
        """Tasks that were not there before."""
        more = {name: count - before.tasks.get(name, 0.0) for name, count in self.tasks.items()}
        return {name: count for name, count in more.items() if count > 0}

    def clear(self, before: Stock) -> bool:
        """Whether nothing is held."""
        return not any(self.held.values()) and not self.surplus(before)


async def take(mesh: StreamMesh) -> Stock:
    """Of all processes that run. Raises OSError for one that does not answer."""
    urls = {f"router-{number}": door.metrics_url for number, door in enumerate(mesh.doors)}
    urls.update({name: mill.metrics for name, mill in mesh.mills.items() if mill.child.running})
    found = await asyncio.gather(*(asyncio.to_thread(scrape, url) for url in urls.values()))
    samples = dict(zip(urls, found, strict=True))
    return Stock(
        {what: sum(_held(each, name) for each in samples.values()) for what, name in HELD.items()},
        {
            f"{process} {each.labels['of']}": each.value
            for process, found in samples.items()
            for each in found
            if each.name == _TASKS
        },
    )


def _held(samples: list[Sample], name: str) -> float:
    """Free and cached blocks are no one's."""
    return total(samples, name, **({"state": "held"} if name.endswith("kv_blocks") else {}))


async def cleared(mesh: StreamMesh, before: Stock, limit_s: float) -> tuple[Stock, float]:
    """What is held when that is nothing, or after `limit_s`; and after how many seconds."""
    began_s = time.monotonic()
    while True:
        stock, after_s = await take(mesh), time.monotonic() - began_s
        if stock.clear(before) or after_s > limit_s:
            return stock, after_s
        await asyncio.sleep(_POLL_S)


def rows(case: str, before: Stock, after: Stock) -> Iterator[Row]:
    """What is still held where."""
    for place in (ROUTERS, WORKERS, BLOCKS):
        count = sum(count for what, count in after.held.items() if what.endswith(place))
        yield nothing(case, f"left: {place}", count)
    surplus = after.surplus(before)
    yield nothing(case, ": ".join(["left: tasks", *surplus]), sum(surplus.values()))


def nothing(case: str, metric: str, count: float, unit: str = "of them") -> Row:
    """A count that must be 0."""
    return row(case, metric, unit, [count], aim="== 0", met=count == 0)
