"""Tables for people: a line a policy, a block an experiment."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from bench.results_contract import Row
from bench.sim.play import ALL, Match, Table


class Column(NamedTuple):
    """One figure of a run."""

    head: str
    metric: str
    form: str
    part: str = ALL


COLUMNS = (
    Column("TTFT mean s", "ttft_mean", ".3f"),
    Column("p50", "ttft_p50", ".3f"),
    Column("p99", "ttft_p99", ".3f"),
    Column("TPOT p99 s", "tpot_p99", ".4f"),
    Column("E2E s", "e2e_mean", ".2f"),
    Column("goodput %", "goodput", ".1f"),
    Column("hit %", "hit", ".1f"),
    Column("out tok/s", "output_rate", ".0f"),
    Column("refused", "refused", ".0f"),
)


def lines(table: Table, match: Match, columns: Sequence[Column]) -> list[str]:
    """Medians over seeds, with the spread of those that have one."""
    made = []
    for experiment in match.experiments:
        made.append(f"\n{experiment.name} ({experiment.regime} the knee)")
        made.append(f"{'':30}" + "".join(f"{each.head:>20}" for each in columns))
        for contender in table.contenders(experiment.name):
            cells = [_cell(table, experiment.name, contender, each) for each in columns]
            made.append(f"{contender:30}" + "".join(f"{cell:>20}" for cell in cells))
    return made


def _cell(table: Table, experiment: str, contender: str, column: Column) -> str:
    values = table.values(experiment, contender, column.metric, column.part)
    if not values:
        return ""
    middle = format(statistics.median(values), column.form)
    if len(values) == 1 or min(values) == max(values):
        return middle
    spread = (max(values) - min(values)) / 2
    return f"{middle} ±{format(spread, column.form)}"


def aims(rows: Sequence[Row]) -> list[str]:
    """The rows that have an aim."""
    return [_aim(each) for each in rows if each.aim is not None]


def _aim(row: Row) -> str:
    peer = f", {row.peer}: {row.peer_value:.4g}" if row.peer and row.peer_value is not None else ""
    return (
        f"{'met   ' if row.met else 'MISSED'} {row.case}: {row.metric} = {row.value:.4g} {row.unit} "
        f"({row.spread[0]:.4g} … {row.spread[1]:.4g}, n = {row.repeats}), aim {row.aim}{peer}"
    )
