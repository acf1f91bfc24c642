"""Pictures of a table, where matplotlib is installed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.sim.experiments import Experiment
from bench.sim.play import Table

_LABELS = {"ttft_p99": "TTFT p99 (s)", "ttft_mean": "TTFT mean (s)", "goodput": "goodput (%)"}


def draw(table: Table, experiments: Sequence[Experiment], metric: str, path: Path) -> Path | None:
    """Bars of one metric, a panel an experiment, with the spread over seeds; None without matplotlib."""
    if find_spec("matplotlib") is None:
        return None
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    count = len(experiments)
    columns = min(3, count)
    rows = -(-count // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(5.2 * columns, 3.4 * rows), squeeze=False)
    for panel, experiment in zip(panels.flat, experiments, strict=False):
        names = table.contenders(experiment.name)
        values = [table.values(experiment.name, name, metric) for name in names]
        middle = [statistics.median(each) for each in values]
        spread = [
            [mid - min(each) for mid, each in zip(middle, values, strict=True)],
            [max(each) - mid for mid, each in zip(middle, values, strict=True)],
        ]
        colours = ["#1f6f8b" if name == names[0] else "#b9c3c9" for name in names]
        panel.barh(range(len(names)), middle, xerr=spread, color=colours, ecolor="#555555")
        panel.set_yticks(range(len(names)), names, fontsize=7)
        panel.invert_yaxis()
        panel.set_title(experiment.name, fontsize=8)
        panel.tick_params(axis="x", labelsize=7)
        panel.set_xlabel(_LABELS.get(metric, metric), fontsize=7)
        if metric.startswith("ttft"):
            _log_seconds(panel.xaxis)
    for panel in list(panels.flat)[count:]:
        panel.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _log_seconds(axis: Any) -> None:
    """A logarithmic axis with plain numbers, as many as find room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.axes.set_xscale("log")
    low, high = axis.axes.get_xlim()
    steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high < 10 * low else (1.0, 3.0)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
