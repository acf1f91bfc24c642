"""What every benchmark leaves behind: one JSON file with its rows, and where and how they were measured.

    rows = [row("16 streams", "tokens_per_s", "tok/s", samples, aim=">= 1.0 * peer", met=..., peer=...)]
    record("decode", rows, packages=["torch"])      # prints the table, writes bench/results/decode.json

An aim that was missed says so and stays in the file. Figures that were not measured are not written.
"""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from rich import box
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
Text = Annotated[str, Field(min_length=1)]


class ContractError(ValueError):
    """A result breaks the contract; the message is one line that names file, place and fault."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Part):
    """Where it was measured."""

    cpu: Text
    cores: int = Field(ge=1, description="that the process may use")
    gpu: str | None
    python: Text


class Row(_Part):
    """One figure: the median of its repeats, between the least and the greatest."""

    case: Text
    metric: Text
    unit: Text
    value: FiniteFloat
    spread: tuple[FiniteFloat, FiniteFloat]
    repeats: int = Field(ge=1)
    aim: Text | None = None
    met: bool | None = None
    peer: Text | None = None
    peer_value: FiniteFloat | None = None

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if not self.spread[0] <= self.value <= self.spread[1]:
            raise ValueError(f"value {self.value} lies outside its spread {list(self.spread)}")
        if (self.aim is None) != (self.met is None):
            raise ValueError("an aim and whether it was met go together")
        if self.peer_value is not None and self.peer is None:
            raise ValueError("a peer's value needs the peer's name")
        return self


class Result(_Part):
    """All rows of one run of one benchmark."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    command: Text
    when: date
    commit: Text
    machine: Machine
    versions: dict[str, str]
    rows: list[Row] = Field(min_length=1)

    @property
    def missed(self) -> list[Row]:
        """Rows whose aim was not met."""
        return [row for row in self.rows if row.met is False]


def row(
    case: str,
    metric: str,
    unit: str,
    samples: Sequence[float],
    *,
    aim: str | None = None,
    met: bool | None = None,
    peer: str | None = None,
    peer_samples: Sequence[float] = (),
) -> Row:
    """A row from the repeats of one case; of the peer's repeats the median is kept."""
    return Row(
        case=case,
        metric=metric,
        unit=unit,
        value=statistics.median(samples),
        spread=(min(samples), max(samples)),
        repeats=len(samples),
        aim=aim,
        met=met,
        peer=peer,
        peer_value=statistics.median(peer_samples) if peer_samples else None,
    )


def record(
    name: str, rows: list[Row], packages: Iterable[str] = (), results: Path = RESULTS, *, quiet: bool = False
) -> Result:
    """Prints the table and writes `results`/NAME.json.

    Args:
        packages: distributions whose versions belong to the figures.
        quiet: print nothing, for a caller with a table of its own.
    """
    result = Result(
        name=name,
        command=shlex.join(["python", *sys.orig_argv[1:]]),
        when=datetime.now(UTC).date(),
        commit=this_commit(),
        machine=this_machine(),
        versions={package: metadata.version(package) for package in packages},
        rows=rows,
    )
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(result.model_dump_json(indent=2) + "\n")
    if not quiet:
        show(result)
    return result


def read(path: Path) -> Result:
    """A result from its file. Raises ContractError."""
    try:
        result = Result.model_validate_json(path.read_text())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise ContractError(f"{path.name}: {place}: {first['msg']}") from None
    if result.name != path.stem:
        raise ContractError(f"{path.name}: name: the file's name says {path.stem}, not {result.name}")
    return result


_COLUMNS = ("case", "metric", "value", "spread", "peer", "aim")


def show(result: Result, console: Console | None = None) -> None:
    """Prints the rows for people; columns that say nothing are left out."""
    rows = [
        (each.case, each.metric, quantity(each.value, each.unit), spread(each), peer(each), aim(each))
        for each in result.rows
    ]
    table = Table(title=result.name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = zip(_COLUMNS, zip(*rows, strict=True), strict=True)
    told = [name for name, cells in columns if any(cells)]
    for name in told:
        table.add_column(name, overflow="fold", no_wrap=name in ("metric", "value"))
    for cells in rows:
        table.add_row(*(cell for name, cell in zip(_COLUMNS, cells, strict=True) if name in told))
    (console or Console()).print(table)


def quantity(value: float, unit: str) -> str:
    """Four significant digits and the unit."""
    return f"{float(f'{value:.4g}'):,.10g} {unit}"


def spread(each: Row) -> str:
    """Least and greatest, and of how many."""
    return f"{each.spread[0]:.4g} … {each.spread[1]:.4g}, n = {each.repeats}"


def peer(each: Row) -> str:
    """What the row is compared to."""
    if each.peer is None:
        return ""
    return each.peer if each.peer_value is None else f"{each.peer}: {quantity(each.peer_value, each.unit)}"


def aim(each: Row) -> str:
    """The aim, and whether it was met."""
    return "" if each.aim is None else f"{each.aim}: {'met' if each.met else 'MISSED'}"


def this_machine() -> Machine:
    """This machine, as this process sees it."""
    return Machine(
        cpu=_cpu(), cores=len(os.sched_getaffinity(0)), gpu=_gpu(), python=platform.python_version()
    )


def this_commit() -> str:
    """The commit that is checked out, with a `+` when files differ from it; "unknown" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False)
    return head.stdout.strip() + "+" * changed.returncode if head.returncode == 0 else "unknown"


def _cpu() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in info if line.startswith("model name"))
    return next(names, platform.machine())


def _gpu() -> str | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        names = [_gpu_name(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return None
    return f"{len(names)} × {names[0]}" if len(names) > 1 else next(iter(names), None)


def _gpu_name(index: int) -> str:
    import pynvml

    return str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)))
