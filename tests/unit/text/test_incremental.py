import hypothesis.strategies as st
import pytest
from hypothesis import given
from tokenizers import Tokenizer

from services.common.models import ModelDirectory
from services.common.text import IncrementalDecoder, TokenTable, UnsupportedTokenizer
from tests.support.sentencepiece_like import TOKENS, with_byte_fallback, with_metaspace
from tests.support.tiny_tokenizer import tiny_tokenizer

BEYOND_VOCABULARY = 40
TOKENIZERS = {
    "byte_level": tiny_tokenizer(),
    "llama2": with_byte_fallback(strip=True),
    "gemma": with_byte_fallback(strip=False),
    "metaspace_always": with_metaspace("always"),
    "metaspace_never": with_metaspace("never"),
}
TABLES = {name: TokenTable(tokenizer.to_str().encode()) for name, tokenizer in TOKENIZERS.items()}


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, tokenizer.get_vocab_size() + BEYOND_VOCABULARY), max_size=30)


cases = st.sampled_from(sorted(TOKENIZERS)).flatmap(
    lambda name: st.tuples(st.just(name), ids_of(TOKENIZERS[name]), st.booleans())
)


def deltas(decoder: IncrementalDecoder, ids: list[int]) -> list[str]:
    return [decoder.push(token_id) for token_id in ids] + [decoder.finish()]


@given(cases)
def test_the_deltas_together_are_what_the_reference_decodes_at_once(
    case: tuple[str, list[int], bool],
) -> None:
    name, ids, skip = case
    decoder = IncrementalDecoder(TABLES[name], skip_special_tokens=skip)
    expected = TOKENIZERS[name].decode(ids, skip_special_tokens=skip)
    assert "".join(deltas(decoder, ids)) == expected


@given(cases, st.integers(0, 30))
def test_a_resumed_stream_goes_on_with_the_same_deltas(case: tuple[str, list[int], bool], cut: int) -> None:
    name, ids, skip = case
    undisturbed = deltas(IncrementalDecoder(TABLES[name], skip_special_tokens=skip), ids)
    resumed = IncrementalDecoder(TABLES[name], skip_special_tokens=skip, delivered=ids[:cut])
    assert deltas(resumed, ids[cut:]) == undisturbed[min(cut, len(ids)) :]


@given(st.text(max_size=60))
def test_text_survives_encoding_and_incremental_decoding(text: str) -> None:
    ids = TOKENIZERS["byte_level"].encode(text).ids
    assert "".join(deltas(IncrementalDecoder(TABLES["byte_level"]), ids)) == text


def test_a_character_is_held_back_until_its_last_byte() -> None:
    vocabulary = TOKENIZERS["llama2"].get_vocab()
    decoder = IncrementalDecoder(TABLES["llama2"])
    ids = [vocabulary[f"<0x{byte:02X}>"] for byte in "é".encode()] + [vocabulary["mill"]]
    assert deltas(decoder, ids) == ["", "", "émill", ""]


def test_an_unfinished_character_becomes_a_replacement_at_the_end() -> None:
    ids = TOKENIZERS["byte_level"].encode("🜁").ids[:-1]
    assert ids
    assert deltas(IncrementalDecoder(TABLES["byte_level"]), ids)[-1] == "\ufffd"


def test_every_token_of_the_sentencepiece_vocabulary_decodes_alone_as_the_reference_does() -> None:
    for token_id in range(len(TOKENS)):
        for name in ("llama2", "gemma", "metaspace_always"):
            decoder = IncrementalDecoder(TABLES[name], skip_special_tokens=False)
            expected = TOKENIZERS[name].decode([token_id], skip_special_tokens=False)
            assert "".join(deltas(decoder, [token_id])) == expected


@pytest.mark.parametrize(
    "tokenizer_json",
    [
        b"",
        b"[]",
        b"{}",
        b'{"model": {"vocab": {}}, "decoder": null}',
        b'{"model": {"vocab": {}}, "decoder": {"type": "CTC"}}',
        b'{"model": {"vocab": {}}, "decoder": {"type": "Sequence", "decoders": [{"type": "Strip"}]}}',
    ],
)
def test_a_tokenizer_that_cannot_be_followed_is_refused(tokenizer_json: bytes) -> None:
    with pytest.raises(UnsupportedTokenizer):
        TokenTable(tokenizer_json)


@pytest.mark.smollm2
def test_every_token_of_smollm2_decodes_as_the_reference_does(smollm2: ModelDirectory) -> None:
    reference = Tokenizer.from_file(str(smollm2.tokenizer_path))
    ids = list(range(reference.get_vocab_size()))
    decoder = IncrementalDecoder(TokenTable(smollm2.tokenizer_json), skip_special_tokens=False)
    assert "".join(deltas(decoder, ids)) == reference.decode(ids, skip_special_tokens=False)
