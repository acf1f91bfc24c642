"""How long preparations tell a person where they are: a bar on a terminal, plain lines in a pipe."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Protocol

_LINE_EVERY_S = 5.0


class Progress(Protocol):
    """What a preparation reports to. Stages follow each other; amounts are bytes."""

    def start(self, stage: str, total_bytes: int | None) -> None:
        """A stage begins; `total_bytes` is None where nobody knows."""

    def advance(self, amount_bytes: int) -> None:
        """So much more of the current stage is done."""

    def finish(self) -> None:
        """The current stage is done."""


class SilentProgress:
    """Reports nothing."""

    def start(self, stage: str, total_bytes: int | None) -> None: ...

    def advance(self, amount_bytes: int) -> None: ...

    def finish(self) -> None: ...


class LineProgress:
    """One plain line when a stage begins, one every five seconds, one when it ends."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock

    def start(self, stage: str, total_bytes: int | None) -> None:
        self._stage, self._total_bytes, self._done_bytes = stage, total_bytes, 0
        self._started_s = self._said_s = self._clock()
        self._write(f"{stage} ...")

    def advance(self, amount_bytes: int) -> None:
        self._done_bytes += amount_bytes
        if self._clock() - self._said_s < _LINE_EVERY_S:
            return
        self._said_s = self._clock()
        self._write(f"{self._stage}: {self._amount()}")

    def finish(self) -> None:
        self._write(f"{self._stage}: done in {self._clock() - self._started_s:.1f} s")

    def _amount(self) -> str:
        done = f"{self._done_bytes / 1e6:.0f} MB"
        return f"{done} of {self._total_bytes / 1e6:.0f} MB" if self._total_bytes else done


class RichProgress:
    """A bar a stage on a terminal, drawn by rich."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console

        self._console = Console(file=stream)

    def start(self, stage: str, total_bytes: int | None) -> None:
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        amount = () if total_bytes is None else (DownloadColumn(),)
        columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeElapsedColumn())
        self._bars = Bars(*columns, console=self._console)
        self._measured = total_bytes is not None
        self._task = self._bars.add_task(stage, total=total_bytes)
        self._bars.start()

    def advance(self, amount_bytes: int) -> None:
        self._bars.advance(self._task, amount_bytes)

    def finish(self) -> None:
        if not self._measured:  # a bar without an end would look as if it went on
            self._bars.update(self._task, total=1, completed=1)
        self._bars.stop()


def progress_to(stream: IO[str]) -> Progress:
    """The progress that suits `stream`: a bar where a person looks at a terminal, else plain lines."""
    if stream.isatty():
        return RichProgress(stream)
    return LineProgress(lambda line: print(line, file=stream, flush=True))


@contextmanager
def stage(progress: Progress, title: str, total_bytes: int | None = None) -> Iterator[None]:
    """One stage, ended also when it fails."""
    progress.start(title, total_bytes)
    try:
        yield
    finally:
        progress.finish()
