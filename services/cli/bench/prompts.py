"""What is asked: prompts of chosen lengths from a seed, or those of a file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from headrace.request import build_request
from headrace.v1.router_pb2 import GenerateRequest


class Lengths(NamedTuple):
    """A uniform distribution of lengths in tokens, both ends included."""

    least: int
    most: int

    def draw(self, source: random.Random) -> int:
        """One length."""
        return source.randint(self.least, self.most)


def parse_lengths(text: str) -> Lengths:
    """From `512` or `128:1024`. Raises ValueError with what is allowed."""
    least, _, most = text.partition(":")
    try:
        found = Lengths(int(least), int(most or least))
    except ValueError:
        found = Lengths(0, 0)
    if not 1 <= found.least <= found.most:
        raise ValueError(f"{text!r}: write a number of tokens, or LEAST:MOST")
    return found


class Synthetic:
    """Prompts of random token ids, so that lengths are exact and nothing is shared that should not be.

    Args:
        prefix_share: part of each prompt's tokens that it has in common with others.
        prefixes: how many different common beginnings there are.
    """

    def __init__(
        self,
        prompt_tokens: Lengths,
        output_tokens: Lengths,
        vocab_size: int,
        seed: int,
        *,
        prefix_share: float = 0.0,
        prefixes: int = 1,
    ) -> None:
        self._prompt_tokens, self._output_tokens = prompt_tokens, output_tokens
        self._random = random.Random(seed)
        self._ids = range(vocab_size // 10, vocab_size)  # low ids are often special
        self._share = prefix_share
        self._prefixes = [self._draw(prompt_tokens.most) for _ in range(prefixes)]

    def __iter__(self) -> Iterator[GenerateRequest]:
        while True:
            length = self._prompt_tokens.draw(self._random)
            shared = int(self._share * length)
            ids = self._random.choice(self._prefixes)[:shared] + self._draw(length - shared)
            max_tokens = self._output_tokens.draw(self._random)
            yield build_request(token_ids=ids, max_tokens=max_tokens, ignore_eos=True)

    def _draw(self, length: int) -> list[int]:
        return self._random.choices(self._ids, k=length)


class FromFile:
    """The prompts of a JSONL file, round and round.

    A line holds "prompt", "messages", "token_ids" or "turns" (whose first is asked as a chat), and optionally
    "max_tokens". Raises ValueError that names file and line.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        self._requests = [
            _from_line(path, number, line, max_tokens)
            for number, line in enumerate(path.read_text().splitlines(), start=1)
            if line.strip()
        ]
        if not self._requests:
            raise ValueError(f"{path}: no prompts in it")

    def __iter__(self) -> Iterator[GenerateRequest]:
        while True:
            for request in self._requests:
                fresh = GenerateRequest()
                fresh.CopyFrom(request)
                yield fresh


def _from_line(path: Path, number: int, line: str, max_tokens: int) -> GenerateRequest:
    try:
        entry = json.loads(line)
        return build_request(**_prompt(entry), max_tokens=entry.get("max_tokens", max_tokens))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}:{number}: {error}") from None


def _prompt(entry: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("prompt", "messages", "token_ids"):
        if name in entry:
            return {name: entry[name]}
    if entry.get("turns"):
        return {"messages": [("user", entry["turns"][0])]}
    raise ValueError("no prompt, messages, token_ids or turns")
