"""Text to ids and back for one tokenizer: `tokenizers` is the truth, kitoken the fast path to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from services.common.text import ByteLevelFacts, byte_level_facts
from services.tokenizer.text.cutting import pieces
from services.tokenizer.text.errors import InvalidText, TextError, TooLong
from services.tokenizer.text.fast_path import FastPath, load_fast_path, surroundings

COMPARE_EVERY = 256


class EncoderStatistics(NamedTuple):
    """What an encoder did so far."""

    fast: bool
    """Whether the fast path is in use now."""
    why_not: str
    """One line when it is not; empty when it is."""
    encoded: int
    """Texts, and pieces of long ones."""
    compared: int
    """Of those, encoded both ways in service."""
    mismatches: int
    """Of those, whose ids differed; one ends the fast path."""


class TextEncoder:
    """Encodes and decodes with one tokenizer.json. Not for use by several threads at once."""

    def __init__(self, tokenizer_json: bytes, *, compare_every: int = COMPARE_EVERY) -> None:
        """Load the tokenizer, and the fast path where it passes the comparison.

        Args:
            compare_every: in service, one text in so many is encoded both ways.

        Raises:
            TextError: this is no tokenizer.json.
        """
        self._reference = _load(tokenizer_json)
        loaded = load_fast_path(tokenizer_json, self._reference)
        self._fast: FastPath | None = None if isinstance(loaded, str) else loaded
        self._why_not = loaded if isinstance(loaded, str) else ""
        self._facts = byte_level_facts(tokenizer_json)
        self._before, self._after = surroundings(self._reference)
        self._can_cut = self._facts is not None and self._surrounds_alike("one two")
        self._compare_every = compare_every
        self._encoded = self._compared = self._mismatches = 0

    @property
    def vocab_size(self) -> int:
        """Tokens, special ones included."""
        return self._reference.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True, limit: int | None = None) -> list[int]:
        """The ids of `text`. Special tokens that are spelled out in it become their ids.

        Raises:
            InvalidText: it holds a lone surrogate.
            TooLong: it was given up, since it has more ids than `limit` whatever comes next.
        """
        _require_unicode(text)
        if limit is not None and self._facts is not None:
            _require_bytes(self._facts, text, limit)
        return (
            self._in_pieces(text, add_special_tokens, limit)
            if self._can_cut
            else self._ids(text, add_special_tokens)
        )

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; ids without a token are left out."""
        return self._reference.decode(ids, skip_special_tokens=skip_special_tokens)

    def statistics(self) -> EncoderStatistics:
        """The counts so far."""
        fast = self._fast is not None
        return EncoderStatistics(fast, self._why_not, self._encoded, self._compared, self._mismatches)

    def _in_pieces(self, text: str, add_special_tokens: bool, limit: int | None) -> list[int]:
        first, *rest = pieces(text)
        if not rest:
            return self._ids(text, add_special_tokens)
        ids = self._ids(first, False)
        for piece in rest:
            if limit is not None and len(ids) > limit:
                raise TooLong(f"more than {limit} tokens; at most {limit} are allowed")
            ids += self._ids(piece, False)
        return [*self._before, *ids, *self._after] if add_special_tokens else ids

    def _surrounds_alike(self, text: str) -> bool:
        bare, full = self._by_reference(text, False), self._by_reference(text, True)
        return full == [*self._before, *bare, *self._after]

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        self._encoded += 1
        if self._fast is None:
            return self._by_reference(text, add_special_tokens)
        if self._encoded % self._compare_every == 0:
            return self._by_both(self._fast, text, add_special_tokens)
        try:
            return self._fast.encode(text, add_special_tokens)
        except Exception as error:
            self._give_up(f"kitoken failed: {type(error).__name__}")
            return self._by_reference(text, add_special_tokens)

    def _by_reference(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._reference.encode(text, add_special_tokens=add_special_tokens).ids

    def _by_both(self, fast: FastPath, text: str, add_special_tokens: bool) -> list[int]:
        self._compared += 1
        expected = self._by_reference(text, add_special_tokens)
        try:
            same = fast.encode(text, add_special_tokens) == expected
        except Exception:
            same = False
        if not same:
            self._give_up("kitoken gave other ids in service")
        return expected

    def _give_up(self, why: str) -> None:
        self._fast, self._why_not = None, why
        self._mismatches += 1


def _load(tokenizer_json: bytes) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the library raises no narrower class
        raise TextError(f"tokenizer.json cannot be loaded: {error}") from error
    tokenizer.no_truncation()  # some files ask for it; a prompt is never cut or filled up here
    tokenizer.no_padding()
    return tokenizer


def _require_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidText(f"character {error.start} is a lone surrogate, which is no text") from None


def _require_bytes(facts: ByteLevelFacts, text: str, limit: int) -> None:
    excess = facts.excess(text, limit)
    if excess is not None:
        raise TooLong(f"{excess.size} bytes; {limit} tokens hold at most {excess.most}")
