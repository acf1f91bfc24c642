"""What a model is built with on a CUDA device: kernels, products and attention, by settings and by trial."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch

from services.common.lines import say
from services.worker.engine.errors import EngineLoadError
from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.cuda.attention import AttentionShape
from services.worker.engine.torch.cuda.attention.choice import choose_attention
from services.worker.engine.torch.cuda.build import CudaParts
from services.worker.engine.torch.cuda.products import choose_products
from services.worker.engine.torch.memory import BLOCK_TOKENS

if TYPE_CHECKING:
    from services.worker.engine.settings import AttentionKind, Quantization

_PACKAGE = "services.worker.engine.torch.cuda"


class Wanted(NamedTuple):
    """What settings say of it."""

    quantization: Quantization = "none"
    attention: AttentionKind = "auto"
    deterministic: bool = False


@torch.inference_mode()
def choose_cuda_parts(
    config: ModelConfig, context: int, dtype: torch.dtype, device: torch.device, wanted: Wanted
) -> CudaParts:
    """context: tokens of the longest sequence. Says in one line which attention was chosen, and why.

    Raises EngineLoadError, one line, for what this device, this torch or this model has not.
    """
    kernels, product_kernels = _kernels("kernels"), _kernels("kernels.products")
    products = choose_products(
        wanted.quantization, deterministic=wanted.deterministic, device=device, kernels=product_kernels
    )
    width = -(-context // BLOCK_TOKENS)
    shape = AttentionShape(config.heads, config.kv_heads, config.head_dim, BLOCK_TOKENS, width, dtype, device)
    choice = choose_attention(shape, kernels, wanted.attention, deterministic=wanted.deterministic)
    say(str(choice))
    torch.cuda.empty_cache()  # of the trials
    names = (
        torch.cuda.get_device_name(device),
        f"attention {choice.attention.name}",
        products.name,
        "deterministic" if wanted.deterministic else "",
    )
    return CudaParts(
        name=", ".join(filter(None, names)),
        kernels=kernels,
        make_linear=products.make_linear,
        attend=choice.attention,
        deterministic=wanted.deterministic and products.deterministic,
    )


def _kernels(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{_PACKAGE}.{name}")
    except ImportError as error:
        raise EngineLoadError(
            f"CUDA needs triton, which comes with torch for CUDA: {error}; or use device cpu"
        ) from error
