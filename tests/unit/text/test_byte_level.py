"""What is certain of byte-level tokenizers, against the reference."""

import json
import unicodedata
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.common.text.byte_level import _LLAMA3, byte_level_facts
from tests.support.tiny_tokenizer import tiny_tokenizer

TINY = tiny_tokenizer()
DESCRIPTION = json.loads(TINY.to_str())
TEXTS = st.text(st.sampled_from("ab zX09 \n\t'<|>é日🙂\u0301\u1100\u1161\u11a8")) | st.text(
    st.characters(exclude_categories=["Cs"])
)


def split_by(expression: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    steps = [split, DESCRIPTION["pre_tokenizer"] | {"use_regex": False}]
    return {"type": "Sequence", "pretokenizers": steps}


def changed(**fields: Any) -> bytes:
    return json.dumps(DESCRIPTION | fields).encode()


def without_bytes(*spellings: str) -> bytes:
    model = DESCRIPTION["model"]
    vocabulary = {token: at for token, at in model["vocab"].items() if token not in spellings}
    merges = [pair for pair in model["merges"] if not set(pair) & set(spellings)]
    return changed(model=model | {"vocab": vocabulary, "merges": merges})


DIGITS_FIRST = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, DESCRIPTION["pre_tokenizer"]],
}
KNOWN = {
    "gpt2": changed(),
    "digits": changed(pre_tokenizer=DIGITS_FIRST),
    "llama3": changed(pre_tokenizer=split_by(_LLAMA3)),
    "qwen": changed(
        pre_tokenizer=split_by(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), normalizer={"type": "NFC"}
    ),
    "bytes missing": without_bytes("Ĥ", "q"),
}


@pytest.mark.parametrize("tokenizer_json", KNOWN.values(), ids=KNOWN)
@given(text=TEXTS)
def test_no_text_has_fewer_tokens_than_its_bytes_say(tokenizer_json: bytes, text: str) -> None:
    facts = byte_level_facts(tokenizer_json)
    assert facts is not None
    tokens = len(Tokenizer.from_buffer(tokenizer_json).encode(text).ids)
    assert facts.excess(text, tokens) is None


@pytest.mark.parametrize("tokenizer_json", KNOWN.values(), ids=KNOWN)
@given(before=TEXTS, after=TEXTS, letters=st.text("abzAZ", min_size=2, max_size=2))
def test_a_cut_between_a_letter_and_a_space_before_a_letter_changes_no_id(
    tokenizer_json: bytes, before: str, after: str, letters: str
) -> None:
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    left, right = before + letters[0], " " + letters[1] + after
    assert tokenizer.encode(left + right).ids == tokenizer.encode(left).ids + tokenizer.encode(right).ids


def test_a_text_beyond_the_longest_token_times_the_tokens_is_too_long() -> None:
    facts = byte_level_facts(changed())
    assert facts is not None
    longest = max(map(len, [*DESCRIPTION["model"]["vocab"], "<|endoftext|>"]))
    assert facts.excess("x" * (10 * longest), 10) is None
    assert facts.excess("x" * (10 * longest + 1), 10) == (10 * longest + 1, 10 * longest)


def test_bytes_without_a_token_do_not_count() -> None:
    facts = byte_level_facts(KNOWN["bytes missing"])
    assert facts is not None
    assert Tokenizer.from_buffer(KNOWN["bytes missing"]).encode("q" * 9000).ids == []
    assert facts.excess("q" * 9000, 1) is None


def test_composing_shrinks_a_text_to_no_less_than_a_quarter() -> None:
    longest_source: dict[str, int] = defaultdict(int)
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    decomposed = {each: unicodedata.normalize("NFD", each) for each in characters}
    for each, parts in decomposed.items():
        if len(parts) == 1:
            longest_source[parts] = max(longest_source[parts], len(each.encode()))
    for each in characters:
        if unicodedata.normalize("NFC", each) == each:
            assert sum(longest_source[part] for part in decomposed[each]) <= 4 * len(each.encode())


ADDED = DESCRIPTION["added_tokens"][0]


@pytest.mark.parametrize(
    "tokenizer_json",
    [
        b"{}",
        b"[1]",
        changed(normalizer={"type": "NFKC"}),
        changed(pre_tokenizer=None),
        changed(pre_tokenizer={"type": "Whitespace"}),
        changed(pre_tokenizer=split_by(r"\w+")),
        changed(pre_tokenizer=DESCRIPTION["pre_tokenizer"] | {"add_prefix_space": True}),
        changed(model=DESCRIPTION["model"] | {"dropout": 0.1}),
        changed(added_tokens=[ADDED | {"lstrip": True}]),
        changed(added_tokens=[ADDED | {"content": "the wheel"}]),
    ],
)
def test_of_other_tokenizers_nothing_is_certain(tokenizer_json: bytes) -> None:
    assert byte_level_facts(tokenizer_json) is None
