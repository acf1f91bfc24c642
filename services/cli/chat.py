"""`headrace chat`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from services.cli import options, output
from services.cli.errors import FAILURE, CliError, one_line
from services.cli.generate import begin, print_text

if TYPE_CHECKING:
    from headrace.client import Headrace

HELP = "/quit leaves, /reset forgets what was said, Ctrl-C stops an answer"


class _Said(NamedTuple):
    """What came of an answer until Ctrl-C or an error, be it nothing."""

    text: str
    error: Exception | None = None


def chat(
    address: options.Address = options.DEFAULT_ADDRESS,
    api_key: options.ApiKey = None,
    model: options.Model = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: options.MaxTokens = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    tls: options.UseTls = False,
    tls_authority: options.Authority = None,
) -> int:
    """Talk with a model; what was said is kept until /reset or /quit.

    Questions from a pipe or a file that had no answer make it end with 1.
    """
    asked = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    _make_input_editable()
    with asyncio.Runner() as runner:
        mesh = runner.run(_connected(address, api_key, tls, tls_authority))
        try:
            all_answered = _talk(runner, mesh, system, asked)
        finally:
            runner.run(mesh.close())
    return 0 if all_answered or sys.stdin.isatty() else FAILURE


def _make_input_editable() -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  its import is what does it


async def _connected(*connection: Any) -> Headrace:
    return options.connect(*connection)  # inside the loop that will use it


def _talk(runner: asyncio.Runner, mesh: Headrace, system: str | None, asked: dict[str, Any]) -> bool:
    """Answers line by line. Returns whether no answer failed."""
    first = [("system", system)] if system is not None else []
    turns, failures = list(first), 0
    if sys.stdin.isatty():
        output.note(HELP, dim=True)
    while (line := _read()) not in (None, "/quit", "/exit"):
        if line == "/reset":
            turns = list(first)
        elif line.startswith("/"):
            output.note(HELP)
        elif line:
            said, error = _answer(runner, mesh, [*turns, ("user", line)], asked)
            if said:
                turns += [("user", line), ("assistant", said)]
            if error is not None:
                output.note(f"headrace: {one_line(error)}")
                failures += 1
    return not failures


def _read() -> str | None:
    """The next line; None at the end of input. Ctrl-C empties the line."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        output.note(f"\n({HELP})", dim=True)
        return ""


def _answer(
    runner: asyncio.Runner, mesh: Headrace, turns: list[tuple[str, str]], asked: dict[str, Any]
) -> _Said:
    """Streams one answer."""
    from headrace.client import HeadraceError

    said: list[str] = []
    try:
        runner.run(_stream(mesh, turns, asked, said))
    except KeyboardInterrupt:
        output.note("(stopped)", dim=True)
    except (HeadraceError, CliError) as error:
        return _Said("".join(said), error)
    return _Said("".join(said))


async def _stream(
    mesh: Headrace, turns: list[tuple[str, str]], asked: dict[str, Any], said: list[str]
) -> None:
    await print_text(begin(mesh, {"messages": turns, **asked}), said)
