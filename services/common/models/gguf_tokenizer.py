"""tokenizer.json and tokenizer_config.json out of a GGUF file's metadata."""

from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from services.common.models.errors import ModelUnsupported
from services.common.models.gguf_merges import merges_of_scores
from services.common.models.gguf_metadata import GgufFile

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types
_BLANK = "\u2581"  # how sentencepiece writes a space

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class ByteLevelKind(NamedTuple):
    """How a byte-level vocabulary cuts text before it merges, as its own tokenizer.json does."""

    split: str | None = None  # None: GPT-2's own expression
    single_digits: bool = False
    compose: bool = False  # Unicode NFC first
    ignore_merges: bool = False  # a piece that is a token stays whole


_LLAMA3 = ByteLevelKind(split=_LLAMA3_SPLIT, ignore_merges=True)
_QWEN2 = ByteLevelKind(split=_QWEN2_SPLIT, compose=True)
BYTE_LEVEL_KINDS = {
    "gpt-2": ByteLevelKind(),
    "smollm": ByteLevelKind(single_digits=True),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": ByteLevelKind(split=_TEKKEN_SPLIT, ignore_merges=True),
}


def tokenizer_of(file: GgufFile) -> Tokenizer:
    """The tokenizer that the file describes.

    Raises:
        ModelUnsupported: a tokenizer model or a pre-tokenizer that is not known here.
        ModelDamaged: its vocabulary is missing.
    """
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    kind = file.text("tokenizer.ggml.model")
    if kind not in builders:
        supported = ", ".join(sorted(builders))
        raise ModelUnsupported(f"{file.path.name}: tokenizer model {kind!r}; supported: {supported}")
    tokens = file.texts("tokenizer.ggml.tokens")
    tokenizer = builders[kind](file, tokens)
    _add_special_tokens(tokenizer, tokens, file.integers("tokenizer.ggml.token_type"))
    _add_ends(tokenizer, file, tokens, sentencepiece=kind == "llama")
    return tokenizer


def tokenizer_config(file: GgufFile) -> dict[str, Any]:
    """What tokenizer_config.json holds: the special tokens by name and the chat template."""
    tokens = file.texts("tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.integer(f"{file.architecture}.context_length"),
    }
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    for name, key in names.items():
        token_id = file.optional_integer(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            config[name] = tokens[token_id]
    if file.has("tokenizer.chat_template"):
        config["chat_template"] = file.text("tokenizer.chat_template")
    return config


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    kind = _byte_level_kind(file)
    merges = [_pair(merge) for merge in file.texts("tokenizer.ggml.merges")]
    model = models.BPE(vocab=_vocabulary(tokens), merges=merges, ignore_merges=kind.ignore_merges)
    tokenizer = Tokenizer(model)
    if kind.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _cutter(kind)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_level_kind(file: GgufFile) -> ByteLevelKind:
    name = file.text("tokenizer.ggml.pre", "gpt-2")
    if name not in BYTE_LEVEL_KINDS:
        supported = ", ".join(sorted(BYTE_LEVEL_KINDS))
        raise ModelUnsupported(f"{file.path.name}: pre-tokenizer {name!r}; supported: {supported}")
    return BYTE_LEVEL_KINDS[name]


def _cutter(kind: ByteLevelKind) -> pre_tokenizers.PreTokenizer:
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind.split is None)
    if kind.split is not None:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(kind.split), "isolated"), to_bytes])
    if kind.single_digits:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), to_bytes])
    return to_bytes


def _sentencepiece(file: GgufFile, tokens: list[str]) -> Tokenizer:
    """Sentencepiece BPE: the merges follow from the scores; what no token covers falls back to bytes."""
    vocabulary = _vocabulary(tokens)
    merges = merges_of_scores(vocabulary, file.reals("tokenizer.ggml.scores"))
    unknown = tokens[file.integer("tokenizer.ggml.unknown_token_id", 0)]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefix_space = file.flag("tokenizer.ggml.add_space_prefix", True)
    blanks = [normalizers.Prepend(_BLANK)] if prefix_space else []
    tokenizer.normalizer = normalizers.Sequence([*blanks, normalizers.Replace(" ", _BLANK)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix_space else []
    spaces = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*spaces, *strip])
    return tokenizer


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    others = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in others])


def _add_ends(tokenizer: Tokenizer, file: GgufFile, tokens: list[str], *, sentencepiece: bool) -> None:
    """Let `add_special_tokens` put the beginning and the end where the file says so."""
    begin = _end_token(file, tokens, "bos", default=sentencepiece)
    end = _end_token(file, tokens, "eos", default=False)
    if begin is None and end is None:
        return
    ends = [token for token in (begin, end) if token is not None]
    single = " ".join([*([begin] if begin else []), "$A", *([end] if end else [])])
    ids = [(token, tokens.index(token)) for token in ends]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)


def _end_token(file: GgufFile, tokens: list[str], name: str, *, default: bool) -> str | None:
    token_id = file.optional_integer(f"tokenizer.ggml.{name}_token_id")
    if token_id is None or not file.flag(f"tokenizer.ggml.add_{name}_token", default):
        return None
    return tokens[token_id]
