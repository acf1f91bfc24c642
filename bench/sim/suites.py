"""The suites: which experiments, who competes, and the aims that their rows are held against."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.results_contract import Row, row
from bench.sim import loads
from bench.sim.contenders import OURS, Contender, published
from bench.sim.experiments import Experiment, Options, azure, h100
from bench.sim.fairness import split_neighbours
from bench.sim.loads import Load
from bench.sim.play import ALL, Match, Table
from bench.sim.request import Story
from bench.sim.tables import COLUMNS, Column
from services.worker.scheduler.request import LatencyClass

TTFT_MEAN, TTFT_P99 = 1.1, 1.2  # of the best published policy, below the knee
KNEE_P99_S = 0.4
GOODPUT_AT = {11: 96.0, 13: 88.0, 16: 67.0}
CRITICAL_TTFT_S = 1.0
LIGHT_P99, FAIR = 1.3, 0.98
SERVED = 0.99  # of all requests, at least, by whom ours is compared with


@dataclass(frozen=True)
class Suite:
    """One command."""

    name: str
    make: Callable[[Options], Match]
    rows: Callable[[Table, Match], Iterator[Row]]
    plot: str | None = "ttft_p99"
    columns: Sequence[Column] = COLUMNS
    lines: Callable[[Table, Match], list[str]] | None = None  # None: a block an experiment


def everybody() -> list[Contender]:
    """Ours and all published policies."""
    return [Contender(OURS), *published()]


def _described(table: Table, experiment: Experiment, contender: str) -> Iterator[Row]:
    case = f"{experiment.name}: {contender}"
    for metric, unit in (
        ("ttft_mean", "s"),
        ("ttft_p99", "s"),
        ("tpot_p99", "s"),
        ("e2e_mean", "s"),
        ("goodput", "%"),
        ("hit", "%"),
        ("output_rate", "tok/s"),
    ):
        yield row(case, metric, unit, table.values(experiment.name, contender, metric))


def _best(table: Table, experiment: str, metric: str, *, highest: bool = False, part: str = ALL) -> str:
    """Of those that serve as good as all: who loses requests with a worker has fewer left to serve."""
    names = [
        name
        for name in table.contenders(experiment)
        if name != OURS and min(_served(table, experiment, name)) >= SERVED
    ]
    pick = max if highest else min
    return pick(names, key=lambda name: statistics.median(table.values(experiment, name, metric, part)))


def _served(table: Table, experiment: str, name: str) -> list[float]:
    """Part of the requests that a policy finished or refused, by seed."""
    requests, finished, refused = (
        table.values(experiment, name, each) for each in ("requests", "finished", "refused")
    )
    return [(done + no) / total for done, no, total in zip(finished, refused, requests, strict=True)]


def split_classes(stories: Sequence[Story]) -> dict[str, list[Story]]:
    """By latency class, where there are several."""
    parts = {
        each.name.lower(): [story for story in stories if story.request.latency_class is each]
        for each in LatencyClass
    }
    return {name: part for name, part in parts.items() if _ended(part) and len(part) < len(stories)}


def _ended(stories: Sequence[Story]) -> bool:
    return any(each.end_s is not None for each in stories)


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [mine / max(other, 1e-9) for mine, other in zip(ours, theirs, strict=True)]


def _against(
    table: Table, experiment: str, metric: str, limit: float, *, highest: bool = False, part: str = ALL
) -> Row:
    """Ours over the best of the others, by seed."""
    best = _best(table, experiment, metric, highest=highest, part=part)
    ours, theirs = (table.values(experiment, name, metric, part) for name in (OURS, best))
    ratios = _ratios(ours, theirs)
    met = statistics.median(ratios) >= limit if highest else statistics.median(ratios) <= limit
    sign = ">=" if highest else "<="
    return row(
        experiment,
        f"{metric} / best" if part == ALL else f"{part} {metric} / best",
        "×",
        ratios,
        aim=f"{sign} {limit:g}",
        met=met,
        peer=best,
        peer_samples=theirs,
    )


def routing_rows(table: Table, match: Match) -> Iterator[Row]:
    """Every policy on every load, and ours against the best."""
    for experiment in match.experiments:
        name = experiment.name
        if experiment.regime == "below":
            yield _against(table, name, "ttft_mean", TTFT_MEAN)
            yield _against(table, name, "ttft_p99", TTFT_P99)
            for part in WITH_TARGETS:
                if table.values(name, OURS, "ttft_p99", part):
                    yield _against(table, name, "ttft_mean", TTFT_MEAN, part=part)
                    yield _against(table, name, "ttft_p99", TTFT_P99, part=part)
        elif experiment.regime == "at":
            p99 = table.values(name, OURS, "ttft_p99")
            met = statistics.median(p99) <= KNEE_P99_S
            best = _best(table, name, "ttft_p99")
            theirs = table.values(name, best, "ttft_p99")
            aim = f"<= {KNEE_P99_S:g}"
            yield row(name, "ttft_p99", "s", p99, aim=aim, met=met, peer=best, peer_samples=theirs)
        else:
            yield _against(table, name, "e2e_mean", 1.0)
            yield _against(table, name, "goodput", 1.0, highest=True)
    for experiment in match.experiments:
        for contender in table.contenders(experiment.name):
            yield from _described(table, experiment, contender)


def hetero_rows(table: Table, match: Match) -> Iterator[Row]:
    """Ours has to serve everything well where hardware is mixed."""
    for experiment in match.experiments:
        goodput = table.values(experiment.name, OURS, "goodput")
        met = statistics.median(goodput) >= 99.95
        yield row(experiment.name, "goodput", "%", goodput, aim=">= 100", met=met)
        for contender in table.contenders(experiment.name):
            yield from _described(table, experiment, contender)


def _overload(speed: int) -> Experiment:
    def load(options: Options, seed: int) -> Load:
        return loads.sheddable(azure(speed, 8000)(options, seed), 0.3, seed)

    return Experiment(name=f"Azure conv x{speed}, 4 H100", fleet=h100(4), load=load, regime="above")


OVERLOAD = tuple(_overload(speed) for speed in (9, 11, 13, 16))
CRITICAL, SHEDDABLE = "critical", "sheddable"
LIGHT = "light"
WITH_TARGETS = tuple(each.name.lower() for each in (LatencyClass.INTERACTIVE, LatencyClass.STANDARD))
"""Parts that are to have their first tokens soon; BATCH work gives way to them."""


def split_sheddable(stories: Sequence[Story]) -> dict[str, list[Story]]:
    """Those that may be shed, and the others."""
    parts: dict[str, list[Story]] = {CRITICAL: [], SHEDDABLE: []}
    for story in stories:
        parts[SHEDDABLE if story.request.sheddable else CRITICAL].append(story)
    return parts


def split_all(stories: Sequence[Story]) -> dict[str, list[Story]]:
    """By what may be shed and by neighbours, whichever there are."""
    parts = {**split_sheddable(stories), **split_neighbours(stories)}
    return {name: part for name, part in parts.items() if _ended(part)}


def overload_rows(table: Table, match: Match) -> Iterator[Row]:
    """Goodput of all requests, and the critical ones' first tokens."""
    for experiment in match.experiments:
        name, speed = experiment.name, int(experiment.name.split("x")[1].split(",")[0])
        goodput = table.values(name, OURS, "goodput")
        least = GOODPUT_AT.get(speed)
        met = None if least is None else statistics.median(goodput) >= least
        yield row(name, "goodput", "%", goodput, aim=None if least is None else f">= {least:g}", met=met)
        p99 = table.values(name, OURS, "ttft_p99", CRITICAL)
        bound = speed in (11, 13)
        met = statistics.median(p99) <= CRITICAL_TTFT_S if bound else None
        aim = f"<= {CRITICAL_TTFT_S:g}" if bound else None
        yield row(name, "critical ttft_p99", "s", p99, aim=aim, met=met)
        for contender in table.contenders(name):
            case = f"{name}: {contender}"
            for part in (CRITICAL, SHEDDABLE):
                for metric, unit in (("goodput", "%"), ("ttft_p99", "s"), ("refused", "requests")):
                    values = table.values(name, contender, metric, part)
                    if values:
                        yield row(case, f"{part} {metric}", unit, values)
            yield from _described(table, experiment, contender)


def _neighbours(speed: int, routers: int, *, alone: bool) -> Experiment:
    def load(options: Options, seed: int) -> Load:
        shared = loads.neighbours(azure(speed, 6000)(options, seed), 0.7, 5, seed)
        return [each for each in shared if each.tenant != "heavy"] if alone else shared

    what = "light tenants alone" if alone else "heavy neighbour"
    return Experiment(
        name=f"Azure conv x{speed}, {routers} router{'s' * (routers > 1)}: {what}",
        fleet=h100(4, routers=routers),
        load=load,
        regime="above",
    )


def _contended(routers: int) -> Experiment:
    def load(options: Options, seed: int) -> Load:
        return loads.weighted_tenants(azure(24, 10_000)(options, seed), (40, 25, 20, 15), seed)

    return Experiment(
        name=f"Azure conv x24, {routers} router{'s' * (routers > 1)}: four greedy tenants",
        fleet=h100(4, routers=routers),
        load=load,
        regime="above",
    )


FAIRNESS = tuple(
    each
    for routers in (1, 4)
    for each in (
        _neighbours(13, routers, alone=True),
        _neighbours(13, routers, alone=False),
        _contended(routers),
    )
)


def fairness_rows(table: Table, match: Match) -> Iterator[Row]:
    """Light tenants beside a heavy one against themselves alone; greedy tenants among each other."""
    for routers in (1, 4):
        alone, beside, greedy = match.experiments[3 * (routers == 4) :][:3]
        ours = table.values(beside.name, OURS, "ttft_p99", "light")
        ratios = _ratios(ours, table.values(alone.name, OURS, "ttft_p99", "light"))
        met = statistics.median(ratios) <= LIGHT_P99
        yield row(beside.name, "light ttft_p99 / alone", "×", ratios, aim=f"<= {LIGHT_P99:g}", met=met)
        index = table.figures(greedy.name, OURS, "jain")
        yield row(
            greedy.name, "Jain", "index", index, aim=f">= {FAIR:g}", met=statistics.median(index) >= FAIR
        )
        rate = table.figures(beside.name, OURS, "busy_rate")
        theirs = table.figures(beside.name, "LMetric", "busy_rate")
        ratios = _ratios(rate, theirs)
        met = statistics.median(ratios) >= 0.97
        yield row(
            beside.name,
            "tokens / LMetric",
            "×",
            ratios,
            aim=">= 0.97",
            met=met,
            peer="LMetric",
            peer_samples=theirs,
        )
    for experiment in match.experiments:
        for contender in table.contenders(experiment.name):
            case = f"{experiment.name}: {contender}"
            for part in ("light", "heavy"):
                for metric, unit in (("ttft_mean", "s"), ("ttft_p99", "s"), ("refused", "requests")):
                    values = table.values(experiment.name, contender, metric, part)
                    if values:
                        yield row(case, f"{part} {metric}", unit, values)
            yield row(case, "Jain", "index", table.figures(experiment.name, contender, "jain"))
            yield from _described(table, experiment, contender)
