"""Interactive requests beside a standing batch backlog, on real processes: python -m bench.live.mixed

Two simulated workers and two CPU workers serve one model. In turn: interactive requests alone at half of what
the mesh can take; batch work alone, four times as many requests at once as all workers have slots; both; and
both again in one class, first come, first served. What batch work may lose is what interactive work needs:
the part of each worker's time that it took when it was alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import uvloop
from headrace.client import channel
from headrace.v1.router_pb2_grpc import RouterServiceStub

from bench.live.mesh import LiveMesh, Work, WorkerKind, live_mesh
from bench.results_contract import Row, record, row
from bench.shapes import SHAPES, write_model
from services.cli.bench.arrivals import poisson
from services.cli.bench.call import Caller, clock
from services.cli.bench.drive import closed_loop, open_loop
from services.cli.bench.mix import Mix
from services.cli.bench.prompts import Lengths, Synthetic
from services.cli.bench.record import Record
from services.cli.bench.stats import quantile
from services.cli.bench.workload import Job, jobs

if TYPE_CHECKING:
    from headrace.v1.router_pb2_grpc import RouterServiceAsyncStub

SLOTS = 8  # of each worker
BACKLOG = 4  # batch requests at once, times all slots
TIMEOUT_S = 900.0
WARM_UP_S = 5.0
CHAT = (Lengths(32, 256), Lengths(16, 48))  # prompt and output tokens
BULK = (Lengths(256, 768), Lengths(32, 96))
CALIBRATION = """
kv_tokens = 65536
vocab_size = 32000
eos_id = 2
[step]
step_s = 0.004
token_s = 0.0004
context_s = 1e-7
sequence_s = 0.0004
"""


class Load(NamedTuple):
    """What is sent at once."""

    name: str
    chat_rps: float = 0.0
    backlog: int = 0
    one_class: bool = False


class Outcome(NamedTuple):
    """Of one load, within the measured time."""

    ttft_p50_s: float
    ttft_p99_s: float
    chat_requests: float  # answered a second
    bulk_tokens: list[float]  # a second, by worker, prompts and outputs; chat's own taken off by its share
    busy: list[float]  # part of the time within steps, by worker
    failed: int


class Client:
    """Sends loads to a mesh."""

    def __init__(self, mesh: LiveMesh, caller: Caller, unary: Caller, seconds: float, vocab: int) -> None:
        self._mesh = mesh
        self._streams = caller
        self._unary = unary
        self._seconds = seconds
        self._vocab = vocab

    async def capacity(self, seed: int) -> float:
        """Interactive requests a second that the mesh can take."""
        records: list[Record] = []
        until_s = clock() + WARM_UP_S + self._seconds / 2
        work = self._jobs(CHAT, "interactive", seed)
        users = 2 * SLOTS * len(self._mesh.workers)
        await closed_loop(work, self._streams, records.append, users, until_s)
        ended = [
            each.end_s for each in records if each.ok and until_s - self._seconds / 2 <= each.end_s < until_s
        ]
        return len(ended) / (self._seconds / 2)

    async def measure(self, load: Load, seed: int, arrivals: int) -> Outcome:
        """Sends a load and waits until all of it has ended. Prompts from `seed`: no two loads share any."""
        chat: list[Record] = []
        bulk: list[Record] = []
        start_s = clock()
        until_s = start_s + WARM_UP_S + self._seconds
        chat_class, bulk_class = ("standard", "standard") if load.one_class else ("interactive", "batch")
        async with asyncio.TaskGroup() as group:
            if load.backlog:
                work = self._jobs(BULK, bulk_class, seed + 500)
                group.create_task(closed_loop(work, self._unary, bulk.append, load.backlog, until_s))
            if load.chat_rps:
                work, times = self._jobs(CHAT, chat_class, seed), poisson(load.chat_rps, arrivals)
                group.create_task(open_loop(work, self._streams, chat.append, times, until_s))
            before, after = await self._window(start_s)
        measured = [each for each in chat if each.intended_s >= start_s + WARM_UP_S]
        return self._outcome(measured, bulk, before, after)

    async def _window(self, start_s: float) -> tuple[list[Work], list[Work]]:
        await asyncio.sleep(start_s + WARM_UP_S - clock())
        before = await self._mesh.work()
        await asyncio.sleep(start_s + WARM_UP_S + self._seconds - clock())
        return before, await self._mesh.work()

    def _outcome(
        self, chat: Sequence[Record], bulk: Sequence[Record], before: Sequence[Work], after: Sequence[Work]
    ) -> Outcome:
        ttft = sorted(each.ttft_s for each in chat if each.ttft_s is not None) or [0.0]
        tokens = [(b.tokens - a.tokens) / self._seconds for a, b in zip(before, after, strict=True)]
        chat_tokens = sum(each.prompt_tokens + each.output_tokens for each in chat if each.ok) / self._seconds
        rest = 1 - chat_tokens / sum(tokens) if sum(tokens) else 0.0
        return Outcome(
            ttft_p50_s=quantile(ttft, 0.5),
            ttft_p99_s=quantile(ttft, 0.99),
            chat_requests=sum(each.ok for each in chat) / self._seconds,
            bulk_tokens=[each * rest for each in tokens],
            busy=[(b.steps_s - a.steps_s) / self._seconds for a, b in zip(before, after, strict=True)],
            failed=sum(not each.ok for each in (*chat, *bulk)),
        )

    def _jobs(self, lengths: tuple[Lengths, Lengths], latency_class: str, seed: int) -> Iterator[Job]:
        return jobs(Synthetic(*lengths, self._vocab, seed), Mix({latency_class: 1.0}, seed), None)


async def run(repeats: int, seconds: float, load: float) -> list[Row]:
    """All loads on one mesh."""
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        model = write_model(scratch / "llama-60m")
        (scratch / "calibration.toml").write_text(CALIBRATION)
        async with live_mesh(
            model, _kinds(scratch), scratch, {"HEADRACE_ROUTER_LIMITS": '{"queued_requests": 10000}'}
        ) as mesh:
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
            async with channel(mesh.address, None) as connection:
                stub = RouterServiceStub(connection)
                streams, unary = (_caller(stub, unary=each) for each in (False, True))
                client = Client(mesh, streams, unary, seconds, SHAPES["60m"].vocab)
                return await _measure(client, len(mesh.workers), repeats, load)


def _caller(stub: RouterServiceAsyncStub, *, unary: bool) -> Caller:
    return Caller([stub], unary=unary, timeout_s=TIMEOUT_S, retries=100)


async def _measure(client: Client, workers: int, repeats: int, load: float) -> list[Row]:
    capacity = await client.capacity(seed=1)
    rate, backlog = load * capacity, BACKLOG * SLOTS * workers
    loads = (
        Load("interactive alone", chat_rps=rate),
        Load("batch alone", backlog=backlog),
        Load("both", chat_rps=rate, backlog=backlog),
        Load("both, first come first served", chat_rps=rate, backlog=backlog, one_class=True),
    )
    print(f"capacity {capacity:.1f} interactive requests/s, sent {rate:.1f}/s, backlog {backlog}", flush=True)
    outcomes: dict[str, list[Outcome]] = {each.name: [] for each in loads}
    for repeat in range(repeats):
        for number, each in enumerate(loads):
            seed = 1000 * (repeat + 1) + number
            outcomes[each.name].append(await client.measure(each, seed, arrivals=repeat))
            print(each.name, outcomes[each.name][-1], flush=True)
    return list(rows(outcomes))


def rows(outcomes: dict[str, list[Outcome]]) -> Iterator[Row]:
    """The table, with the aims."""
    for name, runs in outcomes.items():
        if "interactive" in name or "both" in name:
            yield row(name, "ttft_p50", "ms", [1e3 * each.ttft_p50_s for each in runs])
            yield row(name, "ttft_p99", "ms", [1e3 * each.ttft_p99_s for each in runs])
            yield row(name, "interactive answered", "1/s", [each.chat_requests for each in runs])
        if "batch" in name or "both" in name:
            yield row(name, "batch tokens", "tok/s", [sum(each.bulk_tokens) for each in runs])
        yield row(name, "busy", "% of workers' time", [100 * statistics.fmean(each.busy) for each in runs])
        yield row(name, "failed", "requests", [float(each.failed) for each in runs])
    alone, bulk, both, plain = outcomes.values()
    for name, runs, aimed in (("both", both, True), ("both, first come first served", plain, False)):
        ttft = [mine.ttft_p99_s / his.ttft_p99_s for mine, his in zip(runs, alone, strict=True)]
        work = [
            sum(mine.bulk_tokens) / _left(*pair)
            for mine, pair in zip(runs, zip(bulk, alone, strict=True), strict=True)
        ]
        yield _ratio(
            name, "ttft_p99 / alone", ttft, "<= 1.25" if aimed else None, statistics.median(ttft) <= 1.25
        )
        yield _ratio(
            name,
            "batch tokens / what is left of batch alone",
            work,
            ">= 0.9" if aimed else None,
            statistics.median(work) >= 0.9,
        )


def _left(bulk: Outcome, alone: Outcome) -> float:
    """Batch tokens a second in the time that interactive work leaves of each worker."""
    return sum(tokens * (1 - busy) for tokens, busy in zip(bulk.bulk_tokens, alone.busy, strict=True))


def _ratio(name: str, metric: str, samples: list[float], aim: str | None, met: bool) -> Row:
    return row(name, metric, "×", samples, aim=aim, met=met if aim else None)


def _kinds(scratch: Path) -> list[WorkerKind]:
    """CPU workers share a core; router, tokenizer and client have the other."""
    common = {"max_seqs": str(SLOTS)}
    simulated = common | {"engine": "simulated", "simulated_calibration": str(scratch / "calibration.toml")}
    core = str(min(os.sched_getaffinity(0)))
    return [
        *(WorkerKind(name="simulated", settings=simulated) for _ in range(2)),
        *(WorkerKind(name="CPU", settings=common, cores=core) for _ in range(2)),
    ]


def main() -> None:
    """Run all, print the table, write the result."""
    options = argparse.ArgumentParser(description="Interactive beside batch on real processes.")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--seconds", type=float, default=40.0, help="measured time of each load")
    options.add_argument("--load", type=float, default=0.5, help="interactive, of what the mesh can take")
    options.add_argument("--name", default="mixed-load", help="of the file in bench/results")
    given = options.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run(given.repeats, given.seconds, given.load))
    record(given.name, found, packages=["torch", "grpcio", "numpy"])


if __name__ == "__main__":
    main()
