"""Small GGUF files as llama.cpp's converter writes them, from weights in Hugging Face's layout."""

import json
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray

from tests.support.tiny_tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, TINY_VOCAB_SIZE, tiny_tokenizer

Weights = dict[str, NDArray[np.float32]]
HIDDEN, FEED_FORWARD, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 16
_MATRICES = {
    "attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_gate": (FEED_FORWARD, HIDDEN),
    "ffn_up": (FEED_FORWARD, HIDDEN),
    "ffn_down": (HIDDEN, FEED_FORWARD),
}


class Options(NamedTuple):
    """What differs between the files of the tests."""

    architecture: str = "llama"
    tied: bool = True
    biased: tuple[str, ...] = ()
    quantisation: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32
    pre: str = "gpt-2"
    tokenizer_model: str = "gpt2"
    rope_freqs: NDArray[np.float32] | None = None
    extra_tensor: str | None = None


def random_weights(options: Options, seed: int = 0) -> Weights:
    """Under GGUF names, with rows in Hugging Face's order."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.2, shape).astype(np.float32)

    weights = {"token_embd.weight": normal(TINY_VOCAB_SIZE, HIDDEN), "output_norm.weight": 1 + normal(HIDDEN)}
    if not options.tied:
        weights["output.weight"] = normal(TINY_VOCAB_SIZE, HIDDEN)
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            weights[f"{prefix}{norm}.weight"] = 1 + normal(HIDDEN)
        for name, shape in _MATRICES.items():
            weights[f"{prefix}{name}.weight"] = normal(*shape)
        if options.architecture == "qwen3":
            for norm in ("attn_q_norm", "attn_k_norm"):
                weights[f"{prefix}{norm}.weight"] = 1 + normal(HEAD_DIM)
        for name in options.biased:
            weights[f"{prefix}{name}.bias"] = normal(_MATRICES[name][0])
    return weights


def write_tiny_gguf(path: Path, options: Options, weights: Weights) -> None:
    """Write `weights` as the architecture's GGUF file, with the tiny tokenizer in its metadata."""
    writer = gguf.GGUFWriter(path, options.architecture)
    _write_shape(writer)
    _write_tokenizer(writer, options)
    for name, values in weights.items():
        _write_tensor(writer, options, name, values)
    if options.rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", options.rope_freqs)
    if options.extra_tensor is not None:
        writer.add_tensor(options.extra_tensor, np.zeros(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permute(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py: halves become neighbours."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _write_shape(writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)


def _write_tokenizer(writer: gguf.GGUFWriter, options: Options) -> None:
    tokenizer = tiny_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocabulary]
    tokens += [f"[PAD{index}]" for index in range(len(tokens), TINY_VOCAB_SIZE)]
    writer.add_tokenizer_model(options.tokenizer_model)
    writer.add_tokenizer_pre(options.pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in tokens])
    writer.add_token_merges(tiny_merges())
    writer.add_eos_token_id(SPECIAL_TOKENS.index("<|im_end|>"))
    writer.add_pad_token_id(SPECIAL_TOKENS.index("<|endoftext|>"))
    writer.add_chat_template(CHAT_TEMPLATE)


def tiny_merges() -> list[str]:
    """The tiny tokenizer's merges as GGUF spells them."""
    merges: list[list[str]] = json.loads(tiny_tokenizer().to_str())["model"]["merges"]
    return [" ".join(pair) for pair in merges]


def _write_tensor(writer: gguf.GGUFWriter, options: Options, name: str, values: NDArray[np.float32]) -> None:
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
    if options.architecture == "llama" and heads is not None:
        values = permute(values, heads)
    plain = gguf.GGMLQuantizationType.F32
    kind = options.quantisation if values.ndim > 1 else plain
    stored = values if kind == plain else quantize(values, kind)
    writer.add_tensor(name, stored, raw_dtype=kind)
