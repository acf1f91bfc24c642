"""Patterns that one string must match together: llguidance follows all of them at once, without a limit.

Of 10 it knows within 0.6 s whether any string does, of 16 after 3 s and 240 MB, of 40 not after minutes. They
come from schemas that are merged: `pattern` and `format` of a schema, of what it refers to, of all parts of
an `allOf` and of one of an `anyOf`. In lark two joined by `&` can be enough, or one that `~` excludes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any
from urllib.parse import unquote

from services.worker.engine.errors import GrammarError
from services.worker.scheduler.request import Grammar

MOST_PATTERNS = 8  # 0.15 s, whatever they are
_ROUNDS = 10
_EMBEDDED = "%json"  # in lark
_PATTERNS = ("pattern", "format")
_NAMES = ("$id", "id", "$anchor")  # below the root they change what a reference means
_NO_SCHEMAS = frozenset({"$defs", "definitions", "enum", "const", "default", "examples"})
_LITERAL = re.compile(r'"(?:\\.|[^"\\])*"|/(?:\\.|[^/\\])+/|(?:#|//)[^\n]*|<[^<>\s]+>', re.DOTALL)  # of lark
_JOINED = re.compile(r"&|~(?!\s*\d)")  # with a number `~` repeats
_TOO_MANY = f"the grammar asks for too much: more than {MOST_PATTERNS} patterns that one string must match"
_OPERATORS = "the grammar asks for too much: & and ~ of regular expressions"


def check_intersections(grammar: Grammar) -> None:
    """Raises GrammarError where a string may have to match too many patterns."""
    if grammar.kind == "regex":
        return
    schemas = [grammar.source]
    if grammar.kind == "lark":
        if _JOINED.search(_LITERAL.sub("", grammar.source)):
            raise GrammarError(_OPERATORS)
        schemas = grammar.source.split(_EMBEDDED)[1:]
    if any(_Patterns(schema).most() > MOST_PATTERNS for schema in schemas):
        raise GrammarError(_TOO_MANY)


Levels = tuple[int, ...]
"""How many patterns a string may have to match: of a schema itself, of what it holds, of what that holds, and
so on; the last is for all that is deeper."""
_NONE: Levels = (0,) * 8


class _Patterns:
    """How many patterns a string of one schema may have to match, at most."""

    def __init__(self, text: str) -> None:
        """Takes the schema at the begin of a text. What is no JSON is llguidance's."""
        try:
            self._root, _ = json.JSONDecoder().raw_decode(text.lstrip())
        except (ValueError, RecursionError):
            self._root = True
        self._of_reference: dict[str, Levels] = {}
        self._looked_up: set[str] = set()
        self._all = sum(_own(part) for part in _parts(self._root))
        self._named = any(_is_named(part) for part in _parts(self._root) if part is not self._root)

    def most(self) -> int:
        """An upper bound. References may go in circles: they are looked up until nothing grows."""
        if self._all <= MOST_PATTERNS:
            return self._all
        try:
            for _ in range(_ROUNDS):
                before = dict(self._of_reference)
                self._looked_up.clear()
                found = self._of(self._root)
                if self._of_reference == before:
                    return max(found)
        except RecursionError:
            pass
        return self._all

    def _of(self, schema: Any) -> Levels:
        """Of a schema, with what is merged into it, level by level."""
        if isinstance(schema, list):
            return self._either(schema)
        if not isinstance(schema, dict):
            return _NONE
        held = _NONE
        merged: list[Levels] = []
        for key, value in schema.items():
            if key == "allOf" and isinstance(value, list):
                merged += map(self._of, value)
            elif key in ("anyOf", "oneOf"):
                merged.append(self._of(value))
            elif key == "$ref" and isinstance(value, str):
                merged.append(self._referred(value))
            elif key == "patternProperties" and isinstance(value, dict):
                merged.append(_below(self._either(value.values())))
            elif key == "properties" and isinstance(value, dict):
                held = _larger(held, self._either(value.values()))
            elif key not in _NO_SCHEMAS:
                held = _larger(held, self._of(value))
        return tuple(map(sum, zip((_own(schema), *_below(held)[1:]), *merged, strict=True)))

    def _either(self, schemas: Iterable[Any]) -> Levels:
        return reduce(_larger, map(self._of, schemas), _NONE)

    def _referred(self, reference: str) -> Levels:
        """Of what is referred to, as far as that is known in this round."""
        if reference not in self._looked_up:
            self._looked_up.add(reference)
            found = self._of_target(reference)
            self._of_reference[reference] = tuple(min(self._all, count) for count in found)
        return self._of_reference.get(reference, _NONE)

    def _of_target(self, reference: str) -> Levels:
        """All there are, where it is not plain what is meant."""
        everything = (self._all,) * len(_NONE)
        if self._named or not reference.startswith("#"):
            return everything
        found = self._root
        for step in reference[1:].split("/")[1:]:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(name)] if isinstance(found, list) else found[name]
            except (LookupError, TypeError, ValueError):
                return everything
        return self._of(found)


def _own(schema: dict[str, Any]) -> int:
    return sum(isinstance(schema.get(word), str) for word in _PATTERNS)


def _larger(one: Levels, other: Levels) -> Levels:
    return tuple(map(max, one, other))


def _below(levels: Levels) -> Levels:
    """The same, one level deeper."""
    return (0, *levels[:-2], max(levels[-2:]))


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """All objects in a schema, itself included."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part
            left += part.values()
        elif isinstance(part, list):
            left += part


def _is_named(part: dict[str, Any]) -> bool:
    """Whether a part of a schema has a name of its own."""
    return any(isinstance(part.get(name), str) for name in _NAMES)
