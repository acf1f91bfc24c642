"""Encoding: the reference decides, and the fast path is used only while it agrees."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer, processors

from services.common.models import ModelDirectory
from services.tokenizer.text.cutting import PIECE_CHARS
from services.tokenizer.text.encoder import TextEncoder
from services.tokenizer.text.errors import InvalidText, TextError, TooLong
from services.tokenizer.text.fast_path import TRICKY_TEXTS, FastPath, load_fast_path
from tests.support.sentencepiece_like import with_byte_fallback
from tests.support.tiny_tokenizer import tiny_tokenizer

REFERENCE = tiny_tokenizer()
TINY_JSON = REFERENCE.to_str().encode()
ENCODER = TextEncoder(TINY_JSON)


class Wrong:
    """A fast tokenizer that gives an id too many."""

    def encode(self, text: str, specials: bool) -> list[int]:
        return [*REFERENCE.encode(text).ids, 0]


class Broken:
    """A fast tokenizer that fails."""

    def encode(self, text: str, specials: bool) -> list[int]:
        raise ValueError


def with_ends() -> Tokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    return tokenizer


@given(st.text(max_size=80), st.booleans())
def test_ids_are_those_of_the_reference(text: str, special: bool) -> None:
    assert ENCODER.statistics().fast
    assert ENCODER.encode(text, special) == REFERENCE.encode(text, add_special_tokens=special).ids


@given(st.lists(st.integers(0, 600), max_size=30), st.booleans())
def test_decoding_is_that_of_the_reference(ids: list[int], skip: bool) -> None:
    assert ENCODER.decode(ids, skip) == REFERENCE.decode(ids, skip_special_tokens=skip)


@given(st.text(max_size=80))
def test_text_comes_back(text: str) -> None:
    assert ENCODER.decode(ENCODER.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude00"])
def test_lone_surrogates_are_refused_and_the_text_is_not_repeated(text: str) -> None:
    with pytest.raises(InvalidText, match="lone surrogate") as caught:
        ENCODER.encode(text)
    assert text not in str(caught.value)


def test_beginning_and_end_are_added_when_asked_for() -> None:
    encoder = TextEncoder(with_ends().to_str().encode())
    assert encoder.statistics().fast
    inner = encoder.encode("the mill", add_special_tokens=False)
    assert encoder.encode("the mill", add_special_tokens=True) == [1, *inner, 2]


def test_truncation_and_padding_in_the_file_are_ignored() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    encoder = TextEncoder(tokenizer.to_str().encode())
    assert encoder.encode("one two three four") == REFERENCE.encode("one two three four").ids
    assert encoder.encode("1") == REFERENCE.encode("1").ids


def test_a_tokenizer_that_the_fast_path_cannot_load_is_encoded_by_the_reference() -> None:
    reference = with_byte_fallback(strip=True)
    encoder = TextEncoder(reference.to_str().encode())
    assert not encoder.statistics().fast
    assert encoder.statistics().why_not
    assert encoder.encode("aéa") == reference.encode("aéa").ids


def test_the_comparison_at_load_refuses_a_tokenizer_that_differs() -> None:
    other = Tokenizer.from_str(REFERENCE.to_str())
    other.add_tokens(["quick"])
    assert "differs" in str(load_fast_path(TINY_JSON, other))


def test_a_mismatch_in_service_ends_the_fast_path_and_is_counted() -> None:
    encoder = TextEncoder(TINY_JSON, compare_every=3)
    encoder._fast = FastPath(Wrong(), [], [])  # type: ignore[arg-type]
    texts = ["one", "two", "three", "four"]
    ids = [encoder.encode(text) for text in texts]
    assert ids[2:] == [REFERENCE.encode(text).ids for text in texts[2:]]
    statistics = encoder.statistics()
    assert (statistics.fast, statistics.compared, statistics.mismatches) == (False, 1, 1)


@pytest.mark.parametrize("compare_every", [1, 100])
def test_a_fast_path_that_fails_is_left_and_the_text_encoded(compare_every: int) -> None:
    encoder = TextEncoder(TINY_JSON, compare_every=compare_every)
    encoder._fast = FastPath(Broken(), [], [])  # type: ignore[arg-type]
    assert encoder.encode("one") == REFERENCE.encode("one").ids
    assert (encoder.statistics().fast, encoder.statistics().mismatches) == (False, 1)


def test_agreement_in_service_is_compared_now_and_then() -> None:
    encoder = TextEncoder(TINY_JSON, compare_every=4)
    for _ in range(10):
        encoder.encode("again")
    assert encoder.statistics().compared == 2
    assert encoder.statistics().fast


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(TextError, match=r"tokenizer\.json"):
        TextEncoder(b"{}")


@pytest.mark.smollm2
def test_the_default_model_is_encoded_on_the_fast_path_with_the_reference_ids(
    smollm2: ModelDirectory,
) -> None:
    encoder = TextEncoder(smollm2.tokenizer_json)
    reference = Tokenizer.from_file(str(smollm2.tokenizer_path))
    assert encoder.statistics().fast, encoder.statistics().why_not
    for text in TRICKY_TEXTS:
        assert encoder.encode(text) == reference.encode(text).ids


WORDS = st.sampled_from(
    ["the wheel turns ", "x", " ", "日本 🙂\n", "don't ", "12 a b", "<|im_end|>", "\t\n z"]
)


@settings(max_examples=20, deadline=None)
@given(words=st.lists(WORDS, min_size=1))
def test_a_long_text_in_pieces_has_the_ids_of_the_whole(words: list[str]) -> None:
    text = "".join(words) * (3 * PIECE_CHARS // len("".join(words)) + 1)
    reference = with_ends()
    encoder = TextEncoder(reference.to_str().encode(), compare_every=2)
    for special in (False, True):
        assert encoder.encode(text, special) == reference.encode(text, add_special_tokens=special).ids
    assert encoder.statistics().mismatches == 0


def test_a_text_that_is_too_long_is_given_up_after_its_first_pieces() -> None:
    encoder = TextEncoder(TINY_JSON)
    with pytest.raises(TooLong):
        encoder.encode("a " * (10 * PIECE_CHARS), limit=2 * PIECE_CHARS)
    assert encoder.statistics().encoded < 5


def test_a_text_of_too_many_bytes_is_not_encoded_at_all() -> None:
    encoder = TextEncoder(TINY_JSON)
    with pytest.raises(TooLong):
        encoder.encode("x" * 20_000, limit=100)
    assert encoder.statistics().encoded == 0
