"""Structured logs: one event a line, with request and tenant ids, never a prompt, an answer or a key."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Literal, TextIO, cast

import structlog

LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
_FIRST = ("timestamp", "level", "service", "event")


def configure(service: str, level: LogLevel = "info", form: LogFormat = "auto") -> None:
    """Sends all logs of this process to standard error; "auto" means colours on a terminal, else JSON."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not console:
        shared += [structlog.processors.format_exc_info, _in_reading_order]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Lossy(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s", force=True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_worth_telling)


def sign(**names: str) -> None:
    """Names in every event which process wrote it, where several of one service share a log."""
    structlog.contextvars.bind_contextvars(**names)


class _Lossy:
    """Takes whole lines, as processes share a log; one that cannot be written is lost, and nothing else is.

    The disk may be full, and who read the pipe may be gone: no reason to fail the request that it tells of.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> None:
        with suppress(OSError):
            self._file.write(line)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()


def _in_reading_order(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """When, how bad, who and what, then the rest."""
    first = {name: event.pop(name) for name in _FIRST if name in event}
    return {**first, **event}


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of one module."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(module=name)
    return logger


def _worth_telling(record: logging.LogRecord) -> bool:
    """Not that a caller was gone when its answer was ready, or sent what is no message to a service of gRPC's
    own: each of them would write a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ not in ("ExecuteBatchError", "DecodeError")
