"""`headrace generate`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import options, output
from services.cli.errors import CutError, UsageError
from services.cli.patience import NO_WORKER_S

if TYPE_CHECKING:
    from headrace.client import Answer, Finished, Headrace

_LONGEST_DEADLINE_S = 1e9


class Class(StrEnum):
    """How urgent a request is."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


def generate(
    prompt: Annotated[str, typer.Argument(help="What to answer; '-' reads standard input.")],
    address: options.Address = options.DEFAULT_ADDRESS,
    api_key: options.ApiKey = None,
    model: options.Model = None,
    chat: Annotated[bool, typer.Option(help="Ask as a chat turn, or continue the text as it is.")] = True,
    system: Annotated[str | None, typer.Option(help="System message before the prompt.")] = None,
    max_tokens: options.MaxTokens = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus, in (0, 1].")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the randomness.", min=0, max=(1 << 64) - 1)
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends the answer; repeatable.")] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a JSON schema that the answer matches.", dir_okay=False)
    ] = None,
    regex: Annotated[str | None, typer.Option(help="What the whole answer matches.")] = None,
    latency_class: Annotated[Class | None, typer.Option("--class", help="How urgent it is.")] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            help="Seconds until the answer must be complete; refused at once where it cannot be.",
            min=0.001,
            max=_LONGEST_DEADLINE_S,
        ),
    ] = None,
    no_queue: Annotated[bool, typer.Option("--no-queue", help="Be refused rather than wait.")] = False,
    sheddable: Annotated[
        bool | None,
        typer.Option(help="May be refused first under load, or not; default: as set for the tenant."),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Only where the same seed gives the same ids in any batch."),
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Reuse no earlier work or answer, and keep none.")
    ] = False,
    label: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE that the worker must have; repeatable.")
    ] = None,
    prefer: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of a worker that is better; repeatable.")
    ] = None,
    as_json: options.Json = False,
    tls: options.UseTls = False,
    tls_authority: options.Authority = None,
    timeout: options.TimeoutS = None,
) -> None:
    """Ask for one answer; it streams to standard output as it is made.

    Refusals that pass are waited for until --timeout; without it, a worker that is missing for a minute.
    Ends with 3 where --max-tokens or the context cut an answer that was to match a schema or a regex.
    """
    text = _standard_input() if prompt == "-" else prompt
    asked: dict[str, Any] = {
        **as_prompt(text, system, chat),
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or (),
        **as_grammar(json_schema, regex),
        "latency_class": latency_class.value if latency_class else None,
        "completion_deadline_s": deadline,
        "do_not_queue": no_queue or None,
        "sheddable": sheddable,
        "deterministic": deterministic or None,
        "cache_scope": "none" if no_cache else None,
        "required_labels": as_labels("--label", label),
        "preferred_labels": as_labels("--prefer", prefer),
        "timeout_s": timeout,
    }

    no_worker_s = NO_WORKER_S if timeout is None else None

    async def ask() -> None:
        async with options.connect(address, api_key, tls, tls_authority, no_worker_s) as mesh:
            answer = begin(mesh, asked)
            cut = await (print_json(answer) if as_json else print_text(answer, []))
            if cut and (json_schema is not None or regex is not None):
                raise CutError("an answer that was cut need not match the schema or the regex")

    asyncio.run(ask())


def begin(mesh: Headrace, asked: dict[str, Any]) -> Answer:
    """The answer to come. Raises UsageError for a value that cannot be sent."""
    try:
        return mesh.generate(**asked)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _standard_input() -> str:
    """All of it. Raises UsageError where it is no text."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8: byte {error.start} and what follows") from None


def as_grammar(json_schema: Path | None, regex: str | None) -> dict[str, str]:
    """The grammar's argument of the client. Raises UsageError for two, and for a file that cannot be read."""
    if json_schema is not None and regex is not None:
        raise UsageError("--json-schema and --regex: give at most one of them")
    if regex is not None:
        return {"regex": regex}
    try:
        return {} if json_schema is None else {"json_schema": json_schema.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"--json-schema: {json_schema} cannot be read ({why})") from None


def as_prompt(text: str, system: str | None, chat: bool) -> dict[str, Any]:
    """The prompt's argument of the client. Raises UsageError for one that is empty or half ignored."""
    if not text.strip():
        raise UsageError("the prompt is empty")
    if not chat and system is not None:
        raise UsageError("--system belongs to a chat turn: leave --no-chat away")
    if not chat:
        return {"prompt": text}
    turns = [("system", system)] if system is not None else []
    return {"messages": [*turns, ("user", text)]}


def as_labels(option: str, given: Sequence[str] | None) -> dict[str, str] | None:
    """Labels from KEY=VALUE. Raises UsageError for one that is not, and for two values of a key."""
    found: dict[str, str] = {}
    for each in given or ():
        key, equals, value = each.partition("=")
        if not key or not equals:
            raise UsageError(f"{option}: {each!r} is not KEY=VALUE")
        if found.setdefault(key, value) != value:
            raise UsageError(f"{option}: {key} has two values, {found[key]!r} and {value!r}")
    return found or None


async def print_json(answer: Answer) -> bool:
    """The whole answer as one JSON document. Returns whether it was cut, and says so."""
    from google.protobuf.json_format import MessageToDict

    finished = await answer.finished()
    output.json_line(MessageToDict(finished, preserving_proto_field_name=True))
    return _told_cut(finished)


async def print_text(answer: Answer, said: list[str]) -> bool:
    """Writes the text as it comes, adds it to `said`, and tells a terminal how fast it came.

    Returns whether it was cut, and says so.
    """
    from headrace.client import Finished

    started_s = time.monotonic()
    first_s: float | None = None
    last_s = 0.0
    async with answer:
        with _whole_lines(said):
            async for event in answer:
                if first_s is None or event.text:
                    last_s = time.monotonic()
                first_s = first_s or last_s
                said.append(event.text)
                print(event.text, end="", flush=True)
    if first_s is None or not isinstance(event, Finished):
        return False
    if sys.stderr.isatty():
        output.note(speed(event, first_s - started_s, last_s - first_s), dim=True)
    return _told_cut(event)


@contextlib.contextmanager
def _whole_lines(said: list[str]) -> Iterator[None]:
    """Ends the line of an answer, be it cut short: what is told of that stands on a line of its own."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, asyncio.CancelledError) and sys.stdout.isatty()  # shows ^C
        if any(said) or interrupted:
            print(flush=True)
        raise
    print(flush=True)


def speed(finished: Finished, first_s: float, rest_s: float) -> str:
    """A line about how fast an answer came; what came at once, or was made before, has no rate.

    Args:
        rest_s: seconds from the first text to the last.
    """
    tokens = finished.usage.output_tokens
    if finished.cached_response:
        return f"[{tokens} tokens, from the response cache]"
    rate = f", then {(tokens - 1) / rest_s:.0f} a second" if tokens > 1 and rest_s > 0 else ""
    return f"[{tokens} tokens, the first after {first_s:.2f} s{rate}]"


def _told_cut(finished: Finished) -> bool:
    """Says of an answer that its bound ended that it did. Returns whether it is one."""
    from headrace.v1.types_pb2 import FINISH_REASON_LENGTH

    cut = finished.finish_reason == FINISH_REASON_LENGTH
    if cut:
        output.note(f"headrace: cut at {finished.usage.output_tokens} tokens (--max-tokens, or the context)")
    return cut
