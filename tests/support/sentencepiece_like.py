"""Small tokenizers with the decoders that sentencepiece models get in tokenizer.json."""

from tokenizers import AddedToken, Tokenizer, decoders, models

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "▁▁", "▁the", "mill", "▁wheel", "é", "日本", " ", "a", "<0xZZ>", "<0x+1>", "🎡"]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, *WORDS]


def with_byte_fallback(*, strip: bool) -> Tokenizer:
    """As in Llama 2 (strip) and Gemma (not)."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
    return _tokenizer(decoders.Sequence(steps))


def with_metaspace(prepend_scheme: str) -> Tokenizer:
    """As in T5 and XLM-R."""
    return _tokenizer(decoders.Metaspace(replacement="▁", prepend_scheme=prepend_scheme))


def _tokenizer(decoder: decoders.Decoder) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(TOKENS)}
    model = models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in TOKENS[:3]])
    return tokenizer
