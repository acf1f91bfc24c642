"""Compiles the kernels of products for a Hopper card without a GPU, as `compiled_kernels` does the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch

from services.worker.engine.torch.cuda.kernels import products as product_kernels
from tests.support.compiled_kernels import all_compiled, record, source

FP8 = torch.float8_e4m3fn
OUTPUTS = (1024, 8192, 28672)  # of each kind of tile


def multiply(rows: int, outputs: int, inputs: int, dtype: torch.dtype, *, biased: bool = False) -> None:
    """Launch a product with fixed tiles."""
    x, weight = torch.zeros(rows, inputs, dtype=dtype), torch.zeros(outputs, inputs, dtype=dtype)
    scales = (torch.zeros(rows, 1), torch.zeros(outputs)) if dtype == FP8 else (None, None)
    wide = torch.bfloat16 if dtype == FP8 else dtype
    bias = torch.zeros(outputs, dtype=wide) if biased else None
    product_kernels.multiply(x, weight, *scales, bias, torch.zeros(rows, outputs, dtype=wide))


def quantise(width: int) -> None:
    """Launch what comes before and after products in 8 bits."""
    x, scales = torch.zeros(4, width, dtype=torch.bfloat16), torch.zeros(4, 1)
    product_kernels.quantise_fp8(x, torch.zeros(4, width, dtype=FP8), scales)
    product_kernels.quantise_int8(x, torch.zeros(32, width, dtype=torch.int8), scales)
    sums = torch.zeros(32, width, dtype=torch.int32)
    product_kernels.rescale(sums, scales, torch.zeros(width), torch.zeros(width), x)


def main() -> Iterator[dict[str, Any]]:
    """Every kernel in the shapes that matter; of one product, whether all batches run the same code."""
    launches = record()
    for dtype in (torch.bfloat16, FP8, torch.float32):
        for outputs in OUTPUTS:
            multiply(1, outputs, 4096, dtype, biased=outputs == OUTPUTS[0])
    for width in (576, 4096, 14336):
        quantise(width)
    yield from all_compiled(launches)
    launches.clear()
    for rows in (1, 7, 16, 64, 4096):
        multiply(rows, 4096, 4096, torch.bfloat16)
    yield {"kernel": "same", "sources": len({source(launch).hash() for launch in launches})}


if __name__ == "__main__":
    for line in main():
        print(json.dumps(line), flush=True)
