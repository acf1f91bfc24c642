"""A whole run: connections, warm-up, and the measured part as often as wanted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headrace.addresses import addresses_in
from headrace.client import Tls, channel
from headrace.errors import from_rpc
from headrace.v1 import router_pb2
from headrace.v1.router_pb2_grpc import RouterServiceStub

from services.cli.bench.arrivals import constant, poisson
from services.cli.bench.call import Caller, clock
from services.cli.bench.drive import closed_loop, open_loop
from services.cli.bench.mix import Mix, Target
from services.cli.bench.prompts import FromFile, Lengths, Synthetic
from services.cli.bench.record import Record
from services.cli.bench.report import Report, build
from services.cli.bench.workload import Job, jobs
from services.cli.errors import CliError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headrace.v1.router_pb2_grpc import RouterServiceAsyncStub

_START_TIMEOUT_S = 30.0
WARM_UP_SEED = 1_000_003  # warm-up prompts must not be those that are measured


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run. Times in seconds."""

    address: str
    api_key: str | None
    tls: Tls | None
    connections: int
    unary: bool
    model: str | None
    total: int | None
    duration_s: float | None
    concurrency: int | None
    rps: float | None
    arrivals: Literal["poisson", "constant"]
    timeout_s: float | None
    retries: int
    warm_up: int
    repeats: int
    seed: int
    prompts_file: Path | None
    prompt_tokens: Lengths
    output_tokens: Lengths
    prefix_share: float
    prefixes: int
    mix: Mapping[str, float]
    targets: Mapping[str, Target]

    @property
    def case(self) -> str:
        """The load in a few words."""
        method = "GenerateUnary" if self.unary else "Generate"
        if self.rps is not None:
            return f"{method} {self.rps:g} rps {self.arrivals}"
        return f"{method} c={self.concurrency}"


async def run(plan: Plan, reports: list[Report]) -> None:
    """Runs the plan and adds a report a repeat, also that of a repeat cut short by cancelling.

    Raises:
        HeadraceError: nobody answers. CliError: the prompts cannot be used.
    """
    async with _stubs(plan) as stubs:
        vocab_size = await _vocab_size(stubs[0], plan)
        sender = _caller(plan, stubs)
        await _warm_up(plan, sender, vocab_size)
        for repeat in range(plan.repeats):
            await _measure(plan, sender, _jobs(plan, vocab_size, plan.seed + repeat), repeat, reports)


async def _measure(
    plan: Plan, sender: Caller, work: Iterator[Job], repeat: int, reports: list[Report]
) -> None:
    records: list[Record] = []
    cpu_s = time.process_time()
    try:
        await _drive(plan, sender, islice(work, plan.total), records, repeat)
    finally:
        if records:
            reports.append(build(records, plan.targets, time.process_time() - cpu_s))


async def _drive(plan: Plan, sender: Caller, work: Iterator[Job], records: list[Record], repeat: int) -> None:
    until_s = clock() + plan.duration_s if plan.duration_s else float("inf")
    if plan.rps is None:
        return await closed_loop(work, sender, records.append, plan.concurrency or 1, until_s)
    times = constant(plan.rps) if plan.arrivals == "constant" else poisson(plan.rps, plan.seed + repeat)
    await open_loop(work, sender, records.append, times, until_s, plan.concurrency)


async def _warm_up(plan: Plan, sender: Caller, vocab_size: int) -> None:
    if plan.warm_up:
        work = islice(_jobs(plan, vocab_size, plan.seed + WARM_UP_SEED), plan.warm_up)
        await closed_loop(work, sender, lambda record: None, plan.concurrency or plan.warm_up, float("inf"))


def _jobs(plan: Plan, vocab_size: int, seed: int) -> Iterator[Job]:
    return jobs(_prompts(plan, vocab_size, seed), Mix(plan.mix, seed), plan.model)


def _prompts(plan: Plan, vocab_size: int, seed: int) -> Iterable[router_pb2.GenerateRequest]:
    if plan.prompts_file is None:
        lengths = (plan.prompt_tokens, plan.output_tokens)
        return Synthetic(*lengths, vocab_size, seed, prefix_share=plan.prefix_share, prefixes=plan.prefixes)
    try:
        return FromFile(plan.prompts_file, plan.output_tokens.most)
    except ValueError as error:
        raise CliError(str(error)) from None


@asynccontextmanager
async def _stubs(plan: Plan) -> AsyncIterator[list[RouterServiceAsyncStub]]:
    """Connections, to all addresses in turn; at least one each."""
    addresses = addresses_in(plan.address)
    count = max(plan.connections, len(addresses))
    channels = [channel(addresses[number % len(addresses)], plan.tls) for number in range(count)]
    try:
        yield [RouterServiceStub(each) for each in channels]
    finally:
        await asyncio.gather(*(each.close() for each in channels))


def _caller(plan: Plan, stubs: list[RouterServiceAsyncStub]) -> Caller:
    return Caller(
        stubs,
        unary=plan.unary,
        metadata=_metadata(plan),
        timeout_s=plan.timeout_s,
        retries=plan.retries,
    )


def _metadata(plan: Plan) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {plan.api_key}"),) if plan.api_key else ()


async def _vocab_size(stub: RouterServiceAsyncStub, plan: Plan) -> int:
    """Of the model that will be asked. Raises HeadraceError, CliError for a model that is not there."""
    import grpc

    try:
        found = await stub.ListModels(
            router_pb2.ListModelsRequest(), metadata=_metadata(plan), timeout=_START_TIMEOUT_S
        )
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from None
    sizes = {model.name: model.vocab_size for model in found.models}
    if not sizes or (plan.model is not None and plan.model not in sizes):
        raise CliError(f"no model {plan.model or ''} is served; there are: {', '.join(sizes) or 'none'}")
    return sizes[plan.model] if plan.model else next(iter(sizes.values()))
