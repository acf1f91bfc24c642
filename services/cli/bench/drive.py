"""Closed and open loops. Both end when there is nothing more to send and everything sent has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

from services.cli.bench.call import clock
from services.cli.bench.record import Record
from services.cli.bench.workload import Job


class Sender(Protocol):
    """What sends a job."""

    async def run(self, job: Job, intended_s: float) -> Record:
        """Sends it; returns when it has ended."""


async def closed_loop(
    jobs: Iterator[Job], sender: Sender, keep: Callable[[Record], object], concurrency: int, until_s: float
) -> None:
    """`concurrency` users, each of whom asks again as soon as it is answered.

    Args:
        jobs: what to send; ends the loop when it ends.
        keep: is told each record as its request ends.
        until_s: moment of the clock from which nothing new is sent.
    """

    async def user() -> None:
        while (now_s := clock()) < until_s and (job := next(jobs, None)) is not None:
            keep(await sender.run(job, now_s))

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(user())


async def open_loop(
    jobs: Iterator[Job],
    sender: Sender,
    keep: Callable[[Record], object],
    arrivals_s: Iterator[float],
    until_s: float,
    most_in_flight: int | None = None,
) -> None:
    """Sends each job at its own time, whether or not earlier ones have been answered.

    Args:
        arrivals_s: seconds after now at which the jobs should be sent, ascending.
        most_in_flight: bound on running requests; waiting for it counts against the request.
    """
    start_s = clock()
    gate = asyncio.Semaphore(most_in_flight) if most_in_flight else None
    async with asyncio.TaskGroup() as group:
        for arrival_s in arrivals_s:
            intended_s = start_s + arrival_s
            if intended_s >= until_s or (job := next(jobs, None)) is None:
                return
            await _sleep_until(intended_s)
            if gate:
                await gate.acquire()
            group.create_task(_send(job, sender, keep, intended_s, gate))


async def _send(
    job: Job,
    sender: Sender,
    keep: Callable[[Record], object],
    intended_s: float,
    gate: asyncio.Semaphore | None,
) -> None:
    try:
        keep(await sender.run(job, intended_s))
    finally:
        if gate:
            gate.release()


async def _sleep_until(moment_s: float) -> None:
    delay_s = moment_s - clock()
    await asyncio.sleep(max(0.0, delay_s))  # also when late: the running requests need the loop
