"""kitoken beside `tokenizers`: three to six times faster, and used only while it gives the same ids.

Measured on SmolLM2's and Qwen3's vocabularies: no difference in 30,000 strings of assigned characters of
Unicode 14 (Qwen3: one, with characters newer than its NFC tables); a few in 10,000 in strings of random
unassigned code points. So a corpus of tricky strings is compared when it is loaded, and every so many
calls in service.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from kitoken import Kitoken
from tokenizers import Tokenizer

# What `tokenizers` cuts with where a ByteLevel step says no more than use_regex (GPT-2's own expression).
# kitoken replaces it by a simpler one, which differs on a tab before a contraction, so it is spelled out.
_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

TRICKY_TEXTS = (
    "",
    " ",
    "a",
    " a",
    "a ",
    "  two  spaces   three    four",
    "\n",
    "\n\n\n",
    "\r\n\r\n \t",
    "\tdef f(x):\n\t\treturn x  # ok\n",
    "    if x != y:\n        z = {'a': [1, 2.5e-3]}\n",
    "don't we'll I've they'd it's I'm you're",
    "DON'T WE'LL I'VE",
    "\t'll \n've \u00a0's '' '",
    "0 12 123 1234 12345 1,234.56 0x1F 3.14159",
    " 7 42nd 2024-01-31T23:59:59Z",
    "²³½ Ⅷ ٣٤٥ १२३ 一二三 ①②",
    "café cafe\u0301 naïve Å Å \u0301",
    "ﬁ ﬂ ſ İ ı ß ẞ",
    "日本語のテキスト。漢字かな交じり文、Kanji 123",
    "안녕하세요 세계 한국어 각",
    "Привет, мир! Ελληνικά עברית العربية हिन्दी ไทย",
    "😀😃 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 1️⃣",
    "\u00a0\u2003\u200b\u200d\ufeff\u2028\u2029\u0085",
    "\x00\x01\x1f\x7f",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><s></s><unk>",
    "<|im_end <|im_end|>> <0x41> ▁ ▁▁ Ġ",
    "a" * 300,
    "ab" * 200,
    "1" * 100,
    " " * 100,
    "!?" * 50,
    "日" * 100,
    "https://example.org/a/b?c=1&d=%20#e user@example.org",
    'SELECT * FROM t WHERE a="b";\n-- comment\n',
    "{\"k\": [null, true, -1.0]}\n```python\nprint('x')\n```",
    "The quick brown fox jumps over the lazy dog. " * 20,
)


class FastPath(NamedTuple):
    """kitoken, and what the tokenizer puts around a text when special tokens are asked for."""

    kitoken: Kitoken
    before: list[int]
    after: list[int]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = list(self.kitoken.encode(text, True))
        return [*self.before, *ids, *self.after] if add_special_tokens else ids


def load_fast_path(tokenizer_json: bytes, reference: Tokenizer) -> FastPath | str:
    """The fast path, or a line that says why there is none."""
    try:
        kitoken = Kitoken(_spelled_out(tokenizer_json))
    except Exception as error:  # whatever it is, the reference works
        return f"kitoken cannot load this tokenizer: {error}"
    before, after = surroundings(reference)
    path = FastPath(kitoken, before, after)
    differing = [text for text in TRICKY_TEXTS if not _agree(path, reference, text)]
    return f"kitoken differs on {differing[0]!r:.40}" if differing else path


def _agree(path: FastPath, reference: Tokenizer, text: str) -> bool:
    try:
        return all(
            path.encode(text, special) == reference.encode(text, add_special_tokens=special).ids
            for special in (False, True)
        )
    except Exception:
        return False


def surroundings(reference: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text when special tokens are asked for."""
    bare = reference.encode("a", add_special_tokens=False).ids
    full = reference.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []  # the comparison will refuse it


def _spelled_out(tokenizer_json: bytes) -> bytes:
    description = json.loads(tokenizer_json)
    if description.get("pre_tokenizer"):
        steps = list(_steps(description["pre_tokenizer"]))
        description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    return json.dumps(description).encode()


def _steps(step: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if step["type"] == "Sequence":
        for inner in step["pretokenizers"]:
            yield from _steps(inner)
    elif step["type"] == "ByteLevel" and step.get("use_regex", True) and not step.get("add_prefix_space"):
        yield {
            "type": "Split",
            "pattern": {"Regex": _GPT2_SPLIT},
            "behavior": "Isolated",
            "invert": False,
        }
        yield step | {"use_regex": False}
    else:
        yield step
