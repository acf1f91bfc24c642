"""`headrace bench`: flags have ghz's names where ghz has them."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import options
from services.cli.errors import INTERRUPTED, CliError, UsageError

if TYPE_CHECKING:
    from services.cli.bench.report import Report
    from services.cli.bench.run import Plan

DEFAULT_TOTAL = 200
DEFAULT_CONCURRENCY = 50
CALLS = {"Generate": False, "GenerateUnary": True}


class Format(StrEnum):
    """How results are written."""

    SUMMARY = "summary"
    JSON = "json"


class Arrivals(StrEnum):
    """How the requests of an open loop are spaced."""

    POISSON = "poisson"
    CONSTANT = "constant"


def bench(
    address: options.Address = options.DEFAULT_ADDRESS,
    api_key: options.ApiKey = None,
    model: options.Model = None,
    call: Annotated[str, typer.Option(help="Generate or GenerateUnary, its full name allowed.")] = "Generate",
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", "-c", min=1, help="Users (50); with -r most in flight."),
    ] = None,
    total: Annotated[int | None, typer.Option("--total", "-n", min=1, help="Requests (200).")] = None,
    duration: Annotated[
        str | None, typer.Option("--duration", "-z", help="How long to send: 30s, 5m, or seconds.")
    ] = None,
    rps: Annotated[
        float | None, typer.Option("--rps", "-r", min=0.001, help="Open loop: requests a second.")
    ] = None,
    arrivals: Annotated[Arrivals, typer.Option(help="Spacing with -r.")] = Arrivals.POISSON,
    connections: Annotated[int, typer.Option(min=1, help="Connections, used in turn.")] = 1,
    timeout: Annotated[float | None, typer.Option("--timeout", "-t", help="Seconds a request.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="Retries of refusals that say when.")] = 0,
    warm_up: Annotated[
        int, typer.Option("--warm-up", "--skipFirst", min=0, help="Requests before, not counted.")
    ] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs.")] = 1,
    prompt_tokens: Annotated[str, typer.Option(help="Length of random prompts: N or LEAST:MOST.")] = "128",
    output_tokens: Annotated[str, typer.Option(help="Length of answers: N or LEAST:MOST.")] = "64",
    prefix_share: Annotated[float, typer.Option(min=0, max=1, help="Part of a prompt that is shared.")] = 0.0,
    prefixes: Annotated[int, typer.Option(min=1, help="Different shared beginnings.")] = 1,
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL file of prompts instead.", dir_okay=False)
    ] = None,
    mix: Annotated[str | None, typer.Option(help="Shares of classes: interactive=0.7,batch=0.3.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="What is good: interactive=0.5/0.04 (s to first token/a token).")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of prompts, classes and arrivals. Default: new ones, unknown to all caches."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", "-O", help="What to write.")] = Format.SUMMARY,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="File instead of standard output.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the JSON results.")] = "headrace-bench",
    tls: options.UseTls = False,
    tls_authority: options.Authority = None,
) -> int:
    """Load a mesh and measure what its users feel.

    That is TTFT, ITL, TPOT, E2E and goodput a class. Times count from when a request should have been sent.
    """
    from services.cli.bench.mix import parse_mix, parse_targets
    from services.cli.bench.prompts import parse_lengths
    from services.cli.bench.report import ALL
    from services.cli.bench.run import Plan

    try:
        plan = Plan(
            address=options.checked(address),
            api_key=api_key,
            tls=options.tls(tls, tls_authority),
            connections=connections,
            unary=_is_unary(call),
            model=model,
            total=total or (None if duration else DEFAULT_TOTAL),
            duration_s=parse_duration(duration) if duration else None,
            concurrency=concurrency or (DEFAULT_CONCURRENCY if rps is None else None),
            rps=rps,
            arrivals=arrivals.value,
            timeout_s=timeout,
            retries=retries,
            warm_up=warm_up,
            repeats=repeats,
            seed=random.randrange(2**31) if seed is None else seed,
            prompts_file=prompts,
            prompt_tokens=parse_lengths(prompt_tokens),
            output_tokens=parse_lengths(output_tokens),
            prefix_share=prefix_share,
            prefixes=prefixes,
            mix=parse_mix(mix),
            targets=parse_targets(target or []),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    reports, interrupted = _run(plan)
    _write(plan, reports, form, out, name)
    if not interrupted and not any(report.by_class[ALL].ok for report in reports):
        raise CliError("no request got its answer")
    return INTERRUPTED if interrupted else 0


def parse_duration(text: str) -> float:
    """Seconds from `30s`, `5m`, `1h` or `30`. Raises ValueError."""
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    try:
        seconds = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"--duration {text!r}: write 30s, 5m, 1h or seconds")
    return seconds


def _is_unary(call: str) -> bool:
    try:
        return CALLS[call.replace("/", ".").rpartition(".")[2]]
    except KeyError:
        raise ValueError(f"--call {call!r}: there are {', '.join(CALLS)}") from None


def _run(plan: Plan) -> tuple[list[Report], bool]:
    """Runs the plan; Ctrl-C ends it with what there is."""
    import uvloop

    from services.cli.bench.run import run

    reports: list[Report] = []
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(plan, reports))
    except KeyboardInterrupt:
        return reports, True
    return reports, False


def _write(plan: Plan, reports: list[Report], form: Format, out: Path | None, name: str) -> None:
    from services.cli.bench import results, table

    if not reports:
        raise CliError("no request ended")
    document = json.dumps(results.document(name, plan.case, reports), indent=1)
    if form is Format.SUMMARY:
        table.show(plan.case, reports, plan.targets)
    elif out is None:
        sys.stdout.write(document + "\n")
    if out is not None:
        out.write_text(document + "\n")
