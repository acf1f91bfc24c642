"""Our policy with one part switched off at a time, over all loads: what does not pay is to be removed.

Parts are found, not listed: every switch of PolicySettings and PlacementSettings that is on, and every amount
of which they say that 0 means off.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from bench.results_contract import Row, row
from bench.sim.contenders import OURS, Contender
from bench.sim.experiments import HETERO, ROUTING, Experiment, Options
from bench.sim.play import ALL, Match, Table
from bench.sim.purposes import BOOKS, PURPOSES, SHORT, split_by_purpose
from bench.sim.router import Variant
from bench.sim.suites import FAIRNESS, LIGHT, OVERLOAD, WITH_TARGETS, split_all
from services.router.policy import PolicySettings
from services.router.policy.placement_settings import PlacementSettings

Settings = TypeVar("Settings", PolicySettings, PlacementSettings)

OFF_AT_ZERO = ("locality_credit_tokens", "tie_share", "short_slice")
EXPERIMENTS: tuple[Experiment, ...] = (*ROUTING[:-1], *HETERO, OVERLOAD[2], FAIRNESS[1])
"""All but the two that take longest: shared prefixes far above the knee, and tenants that are all greedy."""
NOTABLE = 0.05
PARTS = (LIGHT, *WITH_TARGETS, BOOKS, SHORT)


def without() -> Iterator[Contender]:
    """Ours, and ours without each part."""
    yield Contender(OURS)
    plain = PolicySettings()
    for name in _switches(plain):
        yield Contender(f"without {name}", None, Variant(_with_off(plain, name)))
    for name in _switches(plain.placement):
        policy = replace(plain, placement=_with_off(plain.placement, name))
        yield Contender(f"without {name}", None, Variant(policy))


def make(options: Options) -> Match:
    """The match of those that all loads ask something of, on all loads."""
    contenders = [each for each in without() if each.name not in _WITH_A_PURPOSE]
    return Match(EXPERIMENTS, contenders, options, split_all)


def make_purposes(options: Options) -> Match:
    """The match of those that few loads ask anything of, on loads that do."""
    contenders = [each for each in without() if each.name == OURS or each.name in _WITH_A_PURPOSE]
    return Match(PURPOSES, contenders, options, split_by_purpose)


def rows(table: Table, match: Match) -> Iterator[Row]:
    """What each part's absence does to each load, against the whole policy, by seed."""
    for experiment in match.experiments:
        for contender in match.contenders[1:]:
            for metric, part, unit in METRICS:
                values = list(_changes(table, experiment, contender.name, metric, part))
                if values:
                    case = f"{experiment.name}: {contender.name}"
                    yield row(case, _label(metric, part), unit, values)


_WITH_A_PURPOSE = {
    f"without {part}"
    for part in (
        "class_shares",
        "aging",
        "relegation",
        "preemption",
        "interactive_budget",
        "lift",
        "locality_credit_tokens",
        "fair_thinning",
        "refuse_infeasible",
        "long_prompts",
        "clear_for_starving",
        "short_slice",
        "cold_turns",
    )
}
METRICS = (
    ("ttft_mean", ALL, "×"),
    ("ttft_p99", ALL, "×"),
    ("e2e_mean", ALL, "×"),
    ("goodput", ALL, "points"),
    *((metric, part, unit) for part in PARTS for metric, unit in (("ttft_p99", "×"), ("goodput", "points"))),
)


def lines(table: Table, match: Match) -> list[str]:
    """For each part, where its absence is felt, the worst first; parts that nothing misses stand out."""
    made = []
    for contender in match.contenders[1:]:
        felt = sorted(_felt(table, match.experiments, contender.name), reverse=True)
        made.append(f"{contender.name}: {'nothing changes notably' if not felt else ''}")
        made.extend(f"    {text}" for _, text in felt)
    return made


def _felt(table: Table, experiments: Sequence[Experiment], contender: str) -> Iterator[tuple[float, str]]:
    for experiment in experiments:
        for metric, part, unit in METRICS:
            values = list(_changes(table, experiment, contender, metric, part))
            if not values:
                continue
            middle = statistics.median(values)
            harm = -middle / 100 if unit == "points" else middle - 1.0
            if abs(harm) > (NOTABLE if unit == "×" else NOTABLE / 10):
                sign = "worse" if harm > 0 else "BETTER"
                text = f"{sign:6} {_label(metric, part):18} {middle:+8.3g} {unit:6} {experiment.name}"
                yield harm, text


def _changes(table: Table, experiment: Experiment, contender: str, metric: str, part: str) -> Iterator[float]:
    """Of each seed: the ratio to the whole policy, of goodput the difference."""
    whole = table.values(experiment.name, OURS, metric, part)
    other = table.values(experiment.name, contender, metric, part)
    for before, after in zip(whole, other, strict=False):
        yield after - before if metric == "goodput" else after / max(before, 1e-9)


def _label(metric: str, part: str) -> str:
    return metric if part == ALL else f"{part} {metric}"


def _switches(settings: PolicySettings | PlacementSettings) -> list[str]:
    named = [each.name for each in fields(settings)]
    return [name for name in named if getattr(settings, name) is True or name in OFF_AT_ZERO]


def _with_off(settings: Settings, name: str) -> Settings:
    off: Any = False if getattr(settings, name) is True else 0.0
    return replace(settings, **{name: off})
