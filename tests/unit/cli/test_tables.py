"""Tables on terminals of several widths, and in pipes."""

from __future__ import annotations

import io
import re

import pytest

from services.cli import output

COLUMNS = ("Worker", "Model", "Device", "Metrics")
ROW = ("worker-0", "SmolLM2-135M-Instruct", "AMD EPYC 9B14, 2 threads", "http://127.0.0.1:43210/metrics")
SPARE = ("Device", "Model")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    output.table(COLUMNS, [ROW], terminal, spare=SPARE)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert all(len(line) <= width for line in plain.splitlines())
    return [line.strip() for line in plain.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("width", "shown"), [(120, ROW), (80, (ROW[0], ROW[1], ROW[3])), (50, (ROW[0], ROW[3]))]
)
def test_a_narrow_terminal_goes_without_spare_columns_and_breaks_no_cell(
    width: int, shown: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = drawn(width, monkeypatch)
    assert len(lines) == 3
    assert re.split(r" {2,}", lines[2]) == list(shown)


def test_what_is_too_wide_even_so_is_broken_and_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    found = "".join("".join(line.split()) for line in drawn(30, monkeypatch)[2:])
    assert len(found) == len(ROW[0] + ROW[3])


def test_a_pipe_gets_everything() -> None:
    pipe = io.StringIO()
    output.table(COLUMNS, [ROW], pipe, spare=SPARE)
    assert pipe.getvalue().splitlines() == ["worker\tmodel\tdevice\tmetrics", "\t".join(ROW)]
