"""One request's grammar as llguidance runs it: which tokens may come next, after those that came.

The state is a function of the output ids alone, so a resumed request replays what was delivered. Nothing is
shared between requests: a cache of compiled grammars would tell one tenant what another asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from services.worker.engine.errors import GrammarError
from services.worker.engine.intersections import check_intersections
from services.worker.engine.multiples import check_multiples
from services.worker.scheduler.request import Grammar, Request
from services.worker.scheduler.step import UInt8

# An explosive grammar runs out of these in half a second and 300 MB; schemas that people write need a tenth.
_LIMITS = LLParserLimits(step_lexer_fuel=100_000, max_lexer_states=50_000, verbose_errors=False)
# Between tokens of JSON a space, or a line break and indentation: a model that likes blanks still ends.
_BLANKS = r"( |\n {0,40})"
_MESSAGE_CHARS = 300
_SOURCE_DRAWN = re.compile(r"\n +\d+ \| .*", re.DOTALL)
_REGEX_DRAWN = re.compile(r" \(in regex\): regex parse error:\n.*\nerror(?=: )", re.DOTALL)
_BROKEN = "the output does not match the grammar"
_DEAD_END = "no token of the model's vocabulary continues the output under the grammar"


class Vocabulary:
    """A model's tokens as llguidance sees them; thread-safe."""

    def __init__(self, tokenizer: LLTokenizer, eos_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = tuple(eos_ids)

    @classmethod
    def load(cls, tokenizer_json: Path, vocab_size: int, eos_ids: Sequence[int]) -> Self:
        """Reads tokenizer.json; `vocab_size` is the number of logits. Raises ValueError, OSError."""
        text = tokenizer_json.read_text(encoding="utf-8")
        return cls(LLTokenizer(text, n_vocab=vocab_size, eos_token=list(eos_ids) or None), eos_ids)

    def constraint(self, request: Request) -> Constraint:
        """The compiled grammar of a request, before its first `find_next`. Raises GrammarError."""
        assert request.grammar is not None
        matcher = LLMatcher(self._tokenizer, _compiled(request.grammar), log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise GrammarError(_brief(matcher.get_error()))
        sampling, there_are = request.sampling, self._tokenizer.vocab_size
        named = {token for token in sampling.stop_token_ids if token < there_are}
        stops = named | (set() if sampling.ignore_eos else set(self._eos_ids))
        return Constraint(matcher, stops, {*stops, *self._tokenizer.eos_tokens}, sampling.min_tokens)


class Constraint:
    """Where one output stands in its grammar. For one thread at a time.

    Ids that end the output may be chosen only where it matches whole, and then not before `min_tokens`
    unless nothing else may follow.
    """

    def __init__(
        self, matcher: LLMatcher, stops: Iterable[int], ends: Iterable[int], min_tokens: int
    ) -> None:
        self.stops = frozenset(stops)
        self.bits: UInt8 = np.empty(0, np.uint8)  # what the next token may be; see Masks
        self._matcher = matcher
        self._stops = np.array(sorted(self.stops), np.int64)
        self._ends = np.array(sorted(ends), np.int64)  # `stops`, and end ids that are to be ignored
        self._min_tokens = min_tokens
        self._outputs = 0

    def take(self, tokens: list[int]) -> None:
        """Takes output ids, none of which ends it. Raises GrammarError."""
        self._outputs += len(tokens)
        if not self._matcher.consume_tokens(tokens):
            raise GrammarError(_BROKEN)

    def find_next(self) -> bool:
        """Finds what the next token may be; False: nothing, the output is whole. Raises GrammarError."""
        accepting = self._matcher.is_accepting()
        if self._matcher.is_stopped():
            return self._at_end(accepting)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8).copy()
        _check(self._matcher)
        _clear(bits, self._ends)
        if not bits.any():
            return self._at_end(accepting)
        if accepting and self._outputs >= self._min_tokens:
            _set(bits, self._stops)
        self.bits = bits
        return True

    def probe(self) -> None:
        """Tries a token that may come next: some excesses show only then. Raises GrammarError."""
        trial = self._matcher.deep_copy()
        if trial.consume_tokens(np.flatnonzero(np.unpackbits(self.bits, bitorder="little"))[:1].tolist()):
            trial.compute_bitmask()
        _check(trial)

    def _at_end(self, accepting: bool) -> bool:
        if not accepting:
            raise GrammarError(_DEAD_END)
        return False


def _compiled(grammar: Grammar) -> str:
    """llguidance's own form. Raises GrammarError."""
    check_multiples(grammar)
    check_intersections(grammar)
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.source)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.source)
    try:
        return LLMatcher.grammar_from_json_schema(grammar.source, defaults={"whitespace_pattern": _BLANKS})
    except ValueError as error:
        raise GrammarError(_brief(str(error))) from None


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        what = _brief(matcher.get_error())  # a word where it met a dead end, else the limit that it met
        raise GrammarError(f"the grammar asks for too much: {what}" if " " in what else _DEAD_END)


def _clear(bits: UInt8, tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    np.bitwise_and.at(bits, tokens >> 3, ~(1 << (tokens & 7)).astype(np.uint8))


def _set(bits: UInt8, tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    np.bitwise_or.at(bits, tokens >> 3, (1 << (tokens & 7)).astype(np.uint8))


def _brief(error: str) -> str:
    """llguidance's account without its appendix and its drawings of many lines, in one line."""
    told = _REGEX_DRAWN.sub("", _SOURCE_DRAWN.sub("", error.partition("\n<")[0]))
    line = " ".join(told.split())
    return line[:_MESSAGE_CHARS] or "the grammar cannot be used"
