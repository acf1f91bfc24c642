"""From the records of a run to its figures, over all requests and a class at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from services.cli.bench.mix import Target
from services.cli.bench.record import Record
from services.cli.bench.stats import Summary, summarize

ALL = "all"
UNKNOWN = "unknown"
"""Class of requests that asked for none and failed before the router said which it inferred."""


class Errors(NamedTuple):
    """How many requests ended in one error, and what the mesh said to the first of them."""

    requests: int
    said: str


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of some requests. Rates are a second of the run, times are seconds.

    `good` counts requests that got their answer within the targets of their class; failed ones never are.
    """

    requests: int
    ok: int
    good: int
    retries: int
    resumes: int
    seconds: float
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    cached_responses: int
    errors: Mapping[str, Errors]
    ttft: Summary | None
    itl: Summary | None
    tpot: Summary | None
    e2e: Summary | None
    send_lag: Summary | None

    @property
    def goodput_rps(self) -> float:
        """Good requests a second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def requests_per_s(self) -> float:
        """Answered requests a second."""
        return self.ok / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return self.output_tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """The figures of one run, by class and together, and what the generator itself cost."""

    by_class: Mapping[str, Figures]
    generator_cpu_us_per_message: float | None


def build(records: Sequence[Record], targets: Mapping[str, Target], cpu_s: float | None = None) -> Report:
    """The report, by class where there are several. It lasts from its first intended sending to its end."""
    seconds = _seconds(records)
    classes = sorted({record.latency_class for record in records})
    by_class = {ALL: figures(records, targets, seconds)}
    for name in classes if len(classes) > 1 else ():
        mine = [record for record in records if record.latency_class == name]
        by_class[name or UNKNOWN] = figures(mine, targets, seconds)
    messages = sum(record.messages for record in records)
    cost = cpu_s * 1e6 / messages if cpu_s is not None and messages else None
    return Report(by_class=by_class, generator_cpu_us_per_message=cost)


def figures(records: Sequence[Record], targets: Mapping[str, Target], seconds: float) -> Figures:
    """The figures of the records. Latencies are those of answered requests; errors are counted beside."""
    answered = [record for record in records if record.ok]
    return Figures(
        requests=len(records),
        ok=len(answered),
        good=sum(is_good(record, targets.get(record.latency_class)) for record in records),
        retries=sum(record.retries for record in records),
        resumes=sum(record.resumes for record in records),
        seconds=seconds,
        output_tokens=sum(record.output_tokens for record in records),
        prompt_tokens=sum(record.prompt_tokens for record in records),
        cached_tokens=sum(record.cached_tokens for record in records),
        cached_responses=sum(record.cached_response for record in records),
        errors=_errors(record for record in records if not record.ok),
        ttft=summarize(_known(record.ttft_s for record in answered)),
        itl=summarize(chain.from_iterable(record.gaps_s for record in answered)),
        tpot=summarize(_known(record.tpot_s for record in answered)),
        e2e=summarize(record.e2e_s for record in answered),
        send_lag=summarize(record.send_lag_s for record in records),
    )


def is_good(record: Record, target: Target | None) -> bool:
    """Whether the request got its answer as fast as its class promises."""
    if target is None:
        return record.ok
    return record.ok and _within(record.ttft_s, target.ttft_s) and _within(record.tpot_s, target.tpot_s)


def _within(value: float | None, bound: float | None) -> bool:
    return value is None or bound is None or value <= bound


def _errors(failed: Iterable[Record]) -> dict[str, Errors]:
    """By status and reason, the commonest first."""
    counts, said = Counter[str](), dict[str, str]()
    for record in failed:
        name = record.status if record.reason in ("", record.status) else f"{record.status} {record.reason}"
        counts[name] += 1
        said.setdefault(name, record.why)
    return {name: Errors(count, said[name]) for name, count in counts.most_common()}


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _seconds(records: Sequence[Record]) -> float:
    if not records:
        return 0.0
    return max(record.end_s for record in records) - min(record.intended_s for record in records)
