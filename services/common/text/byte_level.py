"""What is certain of a byte-level tokenizer from its tokenizer.json alone, before a text is encoded.

    bytes of a text  ≤  its tokens x the longest token           (x 4 where NFC composes characters first)
    ids("one two")   =  ids("one") + ids(" two")                 cut where an ASCII letter, a space and an
                                                                 ASCII letter meet

The first holds for bytes that are in the vocabulary, since no step removes anything; others may vanish and
do not count. The second holds because every known expression ends a piece between a letter and a space and
looks no further there; no added token may hold a letter before a space, or take spaces from its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from services.common.text.pieces import byte_of_character

_NFC_SHRINKS = 4
"""More than the bytes of decomposed text that become one byte: seven become the two of U+0390."""
_LONGEST_CHARACTER = 4
_NOT_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
_LETTER_AND_SPACE = [chr(letter) + " " for letter in (*range(0x41, 0x5B), *range(0x61, 0x7B))]
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KNOWN_EXPRESSIONS = frozenset({_LLAMA3, _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")})  # and Qwen 2 and 3
_KNOWN_ENDINGS = frozenset({"ByteLevel", "TemplateProcessing"})


class ByteLevelFacts(NamedTuple):
    """What holds for every text."""

    most_bytes_per_token: int
    vanishing: bytes
    """Bytes of UTF-8 without a token."""

    def excess(self, text: str, tokens: int) -> Excess | None:
        """Set when `text` has certainly more tokens than that. Takes about 1 ms a megabyte.

        Raises:
            UnicodeEncodeError: it holds a lone surrogate.
        """
        most = tokens * self.most_bytes_per_token
        if len(text) * _LONGEST_CHARACTER <= most:
            return None
        size = len(text.encode().translate(None, self.vanishing))
        return Excess(size, most) if size > most else None


class Excess(NamedTuple):
    """Bytes of a text that have tokens, and the most that could fit."""

    size: int
    most: int


def byte_level_facts(tokenizer_json: bytes) -> ByteLevelFacts | None:
    """The facts; None for a tokenizer of another kind, of which nothing is certain."""
    try:
        description = json.loads(tokenizer_json)
        return _facts(description) if _keeps_to_itself(description) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _facts(description: Mapping[str, Any]) -> ByteLevelFacts | None:
    vocabulary = description["model"]["vocab"]
    bytes_of_utf8 = {each: byte for each, byte in byte_of_character().items() if byte not in _NOT_IN_UTF8}
    vanishing = bytes(byte for each, byte in bytes_of_utf8.items() if each not in vocabulary)
    composes = description.get("normalizer") is not None
    if composes and vanishing:
        return None
    return ByteLevelFacts(max(_lengths(description)) * (_NFC_SHRINKS if composes else 1), vanishing)


def _keeps_to_itself(description: Mapping[str, Any]) -> bool:
    model, normalizer = description["model"], description.get("normalizer")
    return (
        model.get("type") == "BPE"
        and not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and (normalizer is None or normalizer["type"] == "NFC")
        and _cuts_as_known(list(_flat(description.get("pre_tokenizer"), "pretokenizers")))
        and all(
            step["type"] in _KNOWN_ENDINGS for step in _flat(description.get("post_processor"), "processors")
        )
        and all(_stays_apart(token) for token in description.get("added_tokens") or [])
    )


def _cuts_as_known(steps: list[Mapping[str, Any]]) -> bool:
    """Digits and known expressions, then the bytes; at least one expression cuts before spaces."""
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        return False
    before = [step for step in steps[:-1] if step["type"] != "Digits"]
    return all(_is_known_split(step) for step in before) and (
        bool(before) or bool(steps[-1].get("use_regex", True))
    )


def _is_known_split(step: Mapping[str, Any]) -> bool:
    return (
        step["type"] == "Split"
        and step["behavior"] == "Isolated"
        and not step["invert"]
        and step["pattern"].get("Regex") in _KNOWN_EXPRESSIONS
    )


def _stays_apart(token: Mapping[str, Any]) -> bool:
    takes_neighbours = token.get("lstrip") or token.get("rstrip") or token.get("single_word")
    return not takes_neighbours and not any(pair in token["content"] for pair in _LETTER_AND_SPACE)


def _lengths(description: Mapping[str, Any]) -> Iterator[int]:
    """Bytes of each token: a character of the vocabulary is a byte, an added token is spelled in UTF-8."""
    yield from map(len, description["model"]["vocab"])
    yield from (len(token["content"].encode()) for token in description.get("added_tokens") or [])


def _flat(step: Mapping[str, Any] | None, inner: str) -> Iterable[Mapping[str, Any]]:
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
        return
    for each in step[inner]:
        yield from _flat(each, inner)
