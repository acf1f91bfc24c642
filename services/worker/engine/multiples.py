"""`multipleOf` in schemas: llguidance makes a state of each remainder before any of its limits is asked.

One of 1,000,003 takes it 5 s and 260 MB, those that hold together as much as their least common multiple.
Zeros at a number's end are free where it stands alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from services.worker.engine.errors import GrammarError
from services.worker.scheduler.request import Grammar

MOST_REMAINDERS = 50_000  # 0.5 s and 15 MB
MOST_TOGETHER = 2_000_000  # the least common multiple with its zeros: 2 s and 50 MB at worst, mostly nothing
_WORD, _ESCAPE = "multipleOf", "\\u"
_EMBEDDED = "%json"  # in lark
_DIGITS = 15  # llguidance refuses more
_TOO_MUCH = "the grammar asks for too much: multipleOf of large numbers, or of many without common factors"


def check_multiples(grammar: Grammar) -> None:
    """Raises GrammarError where all `multipleOf` of the schemas in a grammar have too many remainders."""
    if grammar.kind == "regex" or not (_WORD in grammar.source or _ESCAPE in grammar.source):
        return
    found: set[Decimal] = set()
    for schema in _schemas(grammar):
        _collect(schema, found)
    if found and _too_many(found):
        raise GrammarError(_TOO_MUCH)


def _schemas(grammar: Grammar) -> Iterator[str]:
    if grammar.kind == "json_schema":
        yield grammar.source
        return
    yield from grammar.source.split(_EMBEDDED)[1:]


def _collect(schema: str, found: set[Decimal]) -> None:
    """Adds what the schema at the begin of a text is to be divided by. What is no JSON is llguidance's."""

    def note(pairs: list[tuple[str, Any]]) -> None:
        found.update(value for key, value in pairs if key == _WORD and _counts(value))

    decoder = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal, object_pairs_hook=note)
    try:
        decoder.raw_decode(schema.lstrip())
    except (ValueError, ArithmeticError, RecursionError):
        return


def _counts(value: Any) -> bool:
    """Whether llguidance takes it."""
    return isinstance(value, Decimal) and value > 0 and abs(value.adjusted()) <= _DIGITS >= _digits_of(value)


def _digits_of(value: Decimal) -> int:
    return len(value.normalize().as_tuple().digits)


def _too_many(found: set[Decimal]) -> bool:
    alone = [int("".join(map(str, value.normalize().as_tuple().digits))) for value in found]
    ratios = [value.as_integer_ratio() for value in found]
    unit = math.lcm(*(denominator for _, denominator in ratios))
    together = math.lcm(*(numerator * unit // denominator for numerator, denominator in ratios))
    return sum(alone) > MOST_REMAINDERS or (len(found) > 1 and together > MOST_TOGETHER)
