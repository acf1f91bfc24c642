"""What a child said last, for a person: its log's own lines, and of structured events what is not routine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

ROUTINE = ("debug", "info")
_NOT_TOLD = ("event", "level", "service", "module", "timestamp")
_MOST_CHARACTERS = 200
_ROUTINE_OF_VALKEY = re.compile(r"\d+:[A-Z] .*?:[\d.]+ (?:[.*-] |# warning)", re.IGNORECASE)
"""Its lines have a sign for their level, # for the gravest; those that warn are of its start, and no ends."""


def last_words(lines: Iterable[str], count: int, since: str = "") -> list[str]:
    """The last `count` lines worth telling; of structured events those with a timestamp from `since` on."""
    told = [words for line in lines if (words := _told(line.strip(), since))]
    return told[-count:]


def reason(lines: Iterable[str]) -> str:
    """What the last event that is not routine says of why it happened; empty where none does."""
    events = [
        event for line in lines if (event := _event(line.strip())) and event.get("level") not in ROUTINE
    ]
    because = [f"{event['event']}: {event['reason']}" for event in events if "reason" in event]
    return _short(because[-1]) if because else ""


def _told(line: str, since: str) -> str:
    event = _event(line)
    if event is None:
        return "" if _ROUTINE_OF_VALKEY.match(line) else _short(line)
    if event.get("level") in ROUTINE or str(event.get("timestamp", since)) < since:
        return ""
    fields = " ".join(f"{name}={value}" for name, value in event.items() if name not in _NOT_TOLD)
    return _short(f"{event.get('level', 'log')}: {event['event']} {fields}")


def _short(text: str) -> str:
    """The whole words of it that there is room for."""
    if len(text) <= _MOST_CHARACTERS:
        return text.strip()
    part = text[: _MOST_CHARACTERS - 2]
    return f"{part.rpartition(' ')[0] or part} …"


def _event(line: str) -> dict[str, object] | None:
    """The line as a structured event; None when it is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None
