"""The tensors of a GGUF file under the names and in the row order that Hugging Face gives them."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import gguf
import gguf.quants
import numpy as np
from numpy.typing import NDArray

from services.common.models.errors import ModelUnsupported
from services.common.models.gguf_config import architecture_of, attention_heads
from services.common.models.gguf_metadata import GgufFile
from services.common.models.safetensors_file import TensorPlan

_PIECE_VALUES = 4 << 20  # dequantised at once: 16 MiB of float32
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_IGNORED = {"rope_freqs.weight"}  # config.json says it as rope_scaling
_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")


class SourceTensor(NamedTuple):
    """A tensor as the file has it, and what becomes of it."""

    plan: TensorPlan
    tensor: gguf.gguf_reader.ReaderTensor
    row_order: NDArray[np.intp] | None  # None: as they stand


def source_tensors(file: GgufFile) -> list[SourceTensor]:
    """Every tensor to convert.

    Raises:
        ModelUnsupported: a tensor that the architecture does not have.
    """
    return [_source(file, name) for name in file.tensors if name not in _IGNORED]


def hugging_face_name(gguf_name: str) -> str | None:
    """The name that transformers gives the tensor; None where there is none."""
    match = _NAME.fullmatch(gguf_name)
    if match is None:
        return None
    layer, part, kind = match.group("layer", "part", "kind")
    table = _TOP if layer is None else _IN_LAYER
    if part not in table:
        return None
    prefix = "" if layer is None else f"model.layers.{layer}."
    return f"{prefix}{table[part]}.{kind}"


def pieces(source: SourceTensor) -> Iterator[NDArray[np.float32]]:
    """The tensor's values, dequantised, in order, some rows at a time.

    Raises:
        ModelUnsupported: its quantisation is one that the gguf package cannot unpack.
    """
    rows = _as_rows(source)
    step = max(1, _PIECE_VALUES // source.plan.shape[-1])
    for first in range(0, len(rows), step):
        chosen = rows[first : first + step]
        if source.row_order is not None:
            chosen = rows[source.row_order[first : first + step]]
        yield _dequantised(chosen, source.tensor)


def rope_row_order(heads: int, rows: int) -> NDArray[np.intp]:
    """Which row of a llama GGUF's query or key matrix stands where in Hugging Face's.

    ggml rotates neighbours (2i, 2i+1), Hugging Face halves (i, i + head_dim/2); the converter to GGUF
    interleaved the halves of every head (`LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py).
    """
    interleaved = np.arange(rows).reshape(heads, rows // heads // 2, 2)
    return interleaved.swapaxes(1, 2).reshape(-1)


def _source(file: GgufFile, name: str) -> SourceTensor:
    tensor = file.tensors[name]
    target = hugging_face_name(name)
    if target is None:
        raise ModelUnsupported(f"{file.path.name}: unknown tensor {name} in a {file.architecture} model")
    shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))  # GGUF lists the fastest axis first
    return SourceTensor(TensorPlan(target, shape), tensor, _row_order(file, name, shape[0]))


def _row_order(file: GgufFile, name: str, rows: int) -> NDArray[np.intp] | None:
    if not architecture_of(file).interleaved_rope:
        return None
    heads, kv_heads = attention_heads(file)
    part = name.split(".")[-2]
    rotated = {"attn_q": heads, "attn_k": kv_heads}
    return rope_row_order(rotated[part], rows) if part in rotated else None


def _as_rows(source: SourceTensor) -> NDArray[np.generic]:
    data: NDArray[np.generic] = source.tensor.data
    if data.ndim > 1:
        return data
    return data[np.newaxis] if source.row_order is None else data[:, np.newaxis]  # a bias is permuted too


def _dequantised(rows: NDArray[np.generic], tensor: gguf.gguf_reader.ReaderTensor) -> NDArray[np.float32]:
    try:
        return gguf.quants.dequantize(np.ascontiguousarray(rows), tensor.tensor_type)
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        raise ModelUnsupported(
            f"tensor {tensor.name}: {kind} cannot be unpacked; take a Q8_0 file"
        ) from error
