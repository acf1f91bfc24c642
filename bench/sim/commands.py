"""What the command offers: suites by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bench.results_contract import Row, row
from bench.sim import ablation
from bench.sim.contenders import OURS, Contender
from bench.sim.experiments import HETERO, ROUTING, SCALE, Experiment, Options
from bench.sim.fairness import fairness_figures, split_neighbours
from bench.sim.play import Match, Splitter, Table
from bench.sim.request import Story
from bench.sim.suites import (
    CRITICAL,
    FAIRNESS,
    OVERLOAD,
    Suite,
    everybody,
    fairness_rows,
    hetero_rows,
    overload_rows,
    routing_rows,
    split_classes,
    split_sheddable,
)
from bench.sim.tables import COLUMNS, Column


def scale_rows(table: Table, match: Match) -> Iterator[Row]:
    """How long it takes to simulate many workers, and that they serve well."""
    for experiment in match.experiments:
        name = experiment.name
        cpu_s = table.figures(name, OURS, "cpu_s")
        yield row(name, "cpu", "s", cpu_s, aim="<= 600", met=max(cpu_s) <= 600)
        for metric, unit in (("ttft_mean", "s"), ("ttft_p99", "s"), ("goodput", "%")):
            yield row(name, metric, unit, table.values(name, OURS, metric))


def _match(
    experiments: Sequence[Experiment],
    contenders: Callable[[], list[Contender]],
    split: Splitter | None,
    measure: Callable[[Experiment, Sequence[Story]], dict[str, float]] | None,
    options: Options,
) -> Match:
    return Match(experiments, contenders(), options, split, measure)


def _ours_and(*names: str) -> list[Contender]:
    return [each for each in everybody() if each.name in (OURS, *names)]


def _ours_alone() -> list[Contender]:
    return [Contender(OURS)]


SUITES = {
    each.name: each
    for each in (
        Suite("routing", partial(_match, ROUTING, everybody, split_classes, None), routing_rows),
        Suite("hetero", partial(_match, HETERO, everybody, None, None), hetero_rows, "goodput"),
        Suite(
            "overload",
            partial(
                _match,
                OVERLOAD,
                partial(_ours_and, "LMetric", "llm-d blend 3:2:2", "SGLang cache_aware"),
                split_sheddable,
                None,
            ),
            overload_rows,
            "goodput",
            (
                *COLUMNS,
                Column("crit. p99", "ttft_p99", ".3f", CRITICAL),
                Column("crit. %", "goodput", ".1f", CRITICAL),
            ),
        ),
        Suite(
            "fairness",
            partial(_match, FAIRNESS, partial(_ours_and, "LMetric"), split_neighbours, fairness_figures),
            fairness_rows,
            columns=(
                *COLUMNS,
                Column("light p99", "ttft_p99", ".3f", "light"),
                Column("heavy p99", "ttft_p99", ".3f", "heavy"),
            ),
        ),
        Suite("scale", partial(_match, SCALE, _ours_alone, None, None), scale_rows, None),
        Suite("ablation", ablation.make, ablation.rows, None, lines=ablation.lines),
        Suite("purposes", ablation.make_purposes, ablation.rows, None, lines=ablation.lines),
    )
}
