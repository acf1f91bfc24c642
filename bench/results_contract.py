"""What every benchmark leaves behind: one JSON file with its rows, and where and how they were measured.

    rows = [row("16 streams", "tokens_per_s", "tok/s", samples, aim=">= 1.0 * peer", met=..., peer=...)]
    record("decode", rows, packages=["torch"])      # prints the table, writes bench/results/decode.json

An aim that was missed says so and stays in the file. Figures that were not measured are not written.
Nothing is needed but Python: a GPU host has torch and little else (without rich the table is plain).
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console

RESULTS = Path(__file__).parent / "results"
COMMIT_VARIABLE = "HEADRACE_COMMIT"  # names the commit where there is a source tree and no checkout


class ContractError(ValueError):
    """A result breaks the contract; the message is one line that names file, place and fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where it was measured."""

    cpu: str
    cores: int  # that the process may use
    gpu: str | None
    python: str

    def __post_init__(self) -> None:
        for name in ("cpu", "python"):
            _text(name, getattr(self, name))
        _at_least_one("cores", self.cores)
        _optional_text("gpu", self.gpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: the median of its repeats, between the least and the greatest. Raises ContractError."""

    case: str
    metric: str
    unit: str
    value: float
    spread: tuple[float, float]
    repeats: int
    aim: str | None = None
    met: bool | None = None
    peer: str | None = None
    peer_value: float | None = None

    def __post_init__(self) -> None:
        for name in ("case", "metric", "unit"):
            _text(name, getattr(self, name))
        for name in ("aim", "peer"):
            _optional_text(name, getattr(self, name))
        _at_least_one("repeats", self.repeats)
        for each in (self.value, *self.spread, *([] if self.peer_value is None else [self.peer_value])):
            _finite("value, spread and peer_value", each)
        if len(self.spread) != 2 or not self.spread[0] <= self.value <= self.spread[1]:
            raise ContractError(f"value {self.value} lies outside its spread {list(self.spread)}")
        if (self.aim is None) != (self.met is None):
            raise ContractError("an aim and whether it was met go together")
        if self.peer_value is not None and self.peer is None:
            raise ContractError("a peer's value needs the peer's name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All rows of one run of one benchmark."""

    name: str
    command: str
    when: date
    commit: str
    machine: Machine
    versions: dict[str, str]
    rows: list[Row]

    def __post_init__(self) -> None:
        for name in ("command", "commit"):
            _text(name, getattr(self, name))
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise ContractError(f"name: {self.name!r} is not of small letters, digits and hyphens")
        if not self.rows:
            raise ContractError("rows: there are none")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From a file's content. Raises ContractError."""
        try:
            said = json.loads(text)
            when = date.fromisoformat(said["when"])
        except (ValueError, KeyError, TypeError) as error:
            raise ContractError(f"file: {error}") from None
        rows = [_made(Row, f"rows.{at}", each, spread=_pair(each)) for at, each in enumerate(said["rows"])]
        machine = _made(Machine, "machine", said["machine"])
        result: Self = _made(cls, "file", said, when=when, machine=machine, rows=rows)
        return result

    @property
    def missed(self) -> list[Row]:
        """Rows whose aim was not met."""
        return [row for row in self.rows if row.met is False]

    def text(self) -> str:
        """As it is written."""
        return json.dumps({**asdict(self), "when": self.when.isoformat()}, indent=2, ensure_ascii=False)


def _made(kind: Any, place: str, said: Any, **parsed: Any) -> Any:
    known = {field.name for field in fields(kind)}
    if not isinstance(said, Mapping) or set(said) - known:
        raise ContractError(f"{place}: unknown fields {sorted(set(said) - known)}")
    try:
        return kind(**{**said, **parsed})
    except (ContractError, TypeError) as error:
        raise ContractError(f"{place}.{error}") from None


def _pair(said: Any) -> tuple[float, ...]:
    return tuple(said.get("spread", ())) if isinstance(said, Mapping) else ()


def _text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ContractError(f"{name}: {value!r} is no text")


def _optional_text(name: str, value: object) -> None:
    if value is not None:
        _text(name, value)


def _at_least_one(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ContractError(f"{name}: {value!r} is no whole number greater than or equal to 1")


def _finite(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ContractError(f"{name}: {value!r} is no finite number")


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
        command=_command(sys.orig_argv[1:]),
        when=datetime.now(UTC).date(),
        commit=this_commit(),
        machine=this_machine(),
        versions={package: metadata.version(package) for package in packages},
        rows=rows,
    )
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(result.text() + "\n")
    if not quiet:
        show(result)
    return result


def _command(arguments: Iterable[str]) -> str:
    """What measures the same again, wherever it is to be written."""
    kept = list(arguments)
    if "--results" in kept:
        place = kept.index("--results")
        del kept[place : place + 2]
    return shlex.join(["python", *kept])


def read(path: Path) -> Result:
    """A result from its file. Raises ContractError."""
    try:
        result = Result.parse(path.read_text())
    except ContractError as error:
        raise ContractError(f"{path.name}: {error}") from None
    if result.name != path.stem:
        raise ContractError(f"{path.name}: name: the file's name says {path.stem}, not {result.name}")
    return result


_CORES = len(os.sched_getaffinity(0))  # as the command began: a benchmark may pin itself later
_COLUMNS = ("case", "metric", "value", "spread", "peer", "aim")


def show(result: Result, console: Console | None = None) -> None:
    """Prints the rows for people; columns that say nothing are left out."""
    rows = [
        (each.case, each.metric, quantity(each.value, each.unit), spread(each), peer(each), aim(each))
        for each in result.rows
    ]
    columns = zip(_COLUMNS, zip(*rows, strict=True), strict=True)
    told = [name for name, cells in columns if any(cells)]
    lines = [[cell for name, cell in zip(_COLUMNS, cells, strict=True) if name in told] for cells in rows]
    if console is None and not sys.stdout.isatty():  # a file is as wide as its lines
        _show_plain(result.name, told, lines)
        return
    try:
        _show_rich(result.name, told, lines, console)
    except ImportError:
        _show_plain(result.name, told, lines)


def _show_rich(title: str, columns: list[str], lines: list[list[str]], console: Console | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in ("metric", "value"))
    for cells in lines:
        table.add_row(*cells)
    (console or Console()).print(table)


def _show_plain(title: str, columns: list[str], lines: list[list[str]]) -> None:
    widths = [max(map(len, cells)) for cells in zip(columns, *lines, strict=True)]
    print(f"\n{title}")
    for cells in (columns, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


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
    return Machine(cpu=_cpu(), cores=_CORES, gpu=_gpu(), python=platform.python_version())


def this_commit() -> str:
    """The commit that is checked out, with a `+` when files differ from it; outside a checkout what
    COMMIT_VARIABLE says, else "unknown"."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False)
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return os.environ.get(COMMIT_VARIABLE) or "unknown"
    return head.stdout.strip() + "+" * changed.returncode


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
