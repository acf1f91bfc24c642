"""What each token of a tokenizer contributes to the text, read from the bytes of its tokenizer.json.

Two families cover the generative models. In a byte-level vocabulary a token stands for bytes, and the
text is the UTF-8 of all bytes together. In a sentencepiece-like one a token stands for characters, and
`<0xNN>` tokens for single bytes of characters that the vocabulary lacks.
"""

import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

# As Rust reads a byte in base 16: a sign is allowed.
_FALLBACK_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


class UnsupportedTokenizer(ValueError):
    """The tokenizer decodes in a way that cannot be followed token by token; the message says which."""


class Piece(NamedTuple):
    """One token's part of the text."""

    text: str | None  # complete by itself; None: only `data` together with its neighbours tells
    data: bytes
    special: bool  # the end of a turn and the like: decoding may leave it out


class SpaceRule(NamedTuple):
    """What becomes of the space that a sentencepiece-like text begins with."""

    strip_chars: int = 0  # so many spaces are taken off the beginning of the text
    first_token_only: str = ""  # this character vanishes from the first token (Metaspace)


class TokenTable:
    """The pieces of one tokenizer, shared by all streams; each is worked out when it first occurs."""

    def __init__(self, tokenizer_json: bytes) -> None:
        """Read tokenizer.json.

        Raises:
            UnsupportedTokenizer: no tokenizer.json, or its decoder is none of those known here.
        """
        description = _parsed(tokenizer_json)
        self._tokens = _tokens_by_id(description)
        self._special = {entry["content"] for entry in description["added_tokens"] if entry["special"]}
        self._replacements, self.byte_level, self.byte_fallback, self.spaces = _rules(description)
        self._pieces: dict[int, Piece | None] = {}

    def piece(self, token_id: int) -> Piece | None:
        """The piece of `token_id`; None for an id without a token, which a padded embedding may give."""
        try:
            return self._pieces[token_id]
        except KeyError:
            return self._pieces.setdefault(token_id, self._make(self._tokens.get(token_id)))

    def spelling(self, token_id: int) -> str:
        """The token as the vocabulary spells it; empty for an id without a token."""
        return self._tokens.get(token_id, "")

    def _make(self, token: str | None) -> Piece | None:
        if token is None:
            return None
        special = token in self._special
        if self.byte_level:
            data = _byte_level_bytes(token)
            return Piece(_complete(data), data, special)
        for pattern, content in self._replacements:
            token = token.replace(pattern, content)
        if self.byte_fallback and (byte := _fallback_byte(token)) is not None:
            return Piece(None, bytes([byte]), special)
        return Piece(token, b"", special)


@cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of the 256 bytes: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    spelling = {chr(byte): byte for byte in printable}
    return spelling | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _byte_level_bytes(token: str) -> bytes:
    """A token that is not spelled in that alphabet is plain text, as `tokenizers` has it."""
    spelling = byte_of_character()
    try:
        return bytes([spelling[character] for character in token])
    except KeyError:
        return token.encode("utf-8")


def _complete(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _fallback_byte(token: str) -> int | None:
    match = _FALLBACK_BYTE.fullmatch(token)
    return int(match[1], 16) if match else None


def _parsed(tokenizer_json: bytes) -> dict[str, Any]:
    try:
        description = json.loads(tokenizer_json)
        return {
            "model": description["model"],
            "added_tokens": description.get("added_tokens") or [],
            "decoder": description.get("decoder"),
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedTokenizer(f"this is no tokenizer.json: {type(error).__name__}: {error}") from error


def _tokens_by_id(description: dict[str, Any]) -> dict[int, str]:
    vocabulary = description["model"].get("vocab", {})
    if isinstance(vocabulary, dict):
        tokens = {token_id: token for token, token_id in vocabulary.items()}
    else:  # Unigram: pairs of token and score
        tokens = {token_id: entry[0] for token_id, entry in enumerate(vocabulary)}
    return tokens | {entry["id"]: entry["content"] for entry in description["added_tokens"]}


class _Rules(NamedTuple):
    replacements: list[tuple[str, str]]
    byte_level: bool = False
    byte_fallback: bool = False
    spaces: SpaceRule = SpaceRule()


def _rules(description: dict[str, Any]) -> _Rules:
    steps = list(_steps(description["decoder"]))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _Rules([], byte_level=True)
    if kinds == ["Metaspace"]:
        return _metaspace_rules(steps[0])
    return _fused_rules(steps, kinds)


def _steps(decoder: dict[str, Any] | None) -> Iterable[dict[str, Any]]:
    if decoder is None:
        raise UnsupportedTokenizer(
            "the tokenizer has no decoder; supported: ByteLevel, Metaspace, ByteFallback"
        )
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for step in decoder["decoders"]:
        yield from _steps(step)


def _metaspace_rules(step: dict[str, Any]) -> _Rules:
    blank = step["replacement"]
    first = "" if step.get("prepend_scheme") == "never" else blank
    return _Rules([(blank, " ")], spaces=SpaceRule(first_token_only=first))


def _fused_rules(steps: list[dict[str, Any]], kinds: list[str]) -> _Rules:
    """Replace*, ByteFallback?, Fuse, Strip?: what Llama 2, Mistral, Gemma and Phi-3 have."""
    head = [step for step in steps if step["type"] == "Replace"]
    rest = kinds[len(head) :]
    fallback = rest[:1] == ["ByteFallback"]
    known = kinds[: len(head)] == ["Replace"] * len(head) and rest[int(fallback) :] in (
        ["Fuse"],
        ["Fuse", "Strip"],
    )
    if not known or not all("String" in step["pattern"] for step in head):
        raise UnsupportedTokenizer(f"the tokenizer's decoder {kinds} cannot be followed token by token")
    replacements = [(step["pattern"]["String"], step["content"]) for step in head]
    return _Rules(replacements, byte_fallback=fallback, spaces=_strip_rule(steps[-1]))


def _strip_rule(last: dict[str, Any]) -> SpaceRule:
    if last["type"] != "Strip":
        return SpaceRule()
    if last["content"] != " " or last["stop"] != 0:
        raise UnsupportedTokenizer("the tokenizer's decoder strips more than leading spaces")
    return SpaceRule(strip_chars=last["start"])
