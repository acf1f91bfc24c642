"""What bf16 and int8 cost in quality: python -m bench.quality [--model default] [--windows 12].

Each token of a text is predicted from those before it, in windows of 512, by the engine's own forward pass;
float32 is the reference. The text is the project's own documentation, which no model has learned by heart.
A quantisation passes the gate if perplexity rises by no more than one part in a hundred. "as CUDA": products
round as those of a GPU do, attention as on this CPU.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from bench.results_contract import RESULTS, Row, record, row
from services.common.models import ModelDirectory, resolve
from services.worker.engine.settings import Quantization
from services.worker.engine.torch.config import parse_config
from services.worker.engine.torch.cuda import product_reference
from services.worker.engine.torch.cuda.products import products_of
from services.worker.engine.torch.kv import PagedKV, SlotTables
from services.worker.engine.torch.model import Llama
from services.worker.engine.torch.operators import Batch, Rows
from services.worker.engine.torch.parts import choose_parts
from services.worker.engine.torch.weights import open_weights
from services.worker.scheduler.step import KVSpec

WINDOW = 512  # tokens
SPEC = KVSpec(block_size=64, num_blocks=WINDOW // 64, max_seqs=1, max_len=WINDOW)
CPU = torch.device("cpu")
GATE = 1.01  # perplexity, times that of float32


class Kind(NamedTuple):
    """One kind of arithmetic."""

    dtype: torch.dtype
    quantization: Quantization = "none"
    as_cuda: bool = False


KINDS = {
    "float32": Kind(torch.float32),
    "bfloat16": Kind(torch.bfloat16),
    "int8": Kind(torch.bfloat16, "int8"),
    "int8 as CUDA": Kind(torch.bfloat16, "int8", as_cuda=True),
    "fp8 as CUDA": Kind(torch.bfloat16, "fp8", as_cuda=True),
}


class Predictions(NamedTuple):
    """Of one window."""

    loss: float  # nats a token
    best: torch.Tensor  # [WINDOW - 1] most likely ids


def windows(model: ModelDirectory, most: int) -> list[list[int]]:
    """Ids of the project's own pages, cut into windows."""
    root = Path(__file__).parent.parent
    text = "\n".join(path.read_text() for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))))
    ids = Tokenizer.from_file(str(model.tokenizer_path)).encode(text).ids
    return [ids[begin : begin + WINDOW] for begin in range(0, len(ids) - WINDOW + 1, WINDOW)][:most]


def batch_of(ids: list[int]) -> Batch:
    """A whole window in one step, every token's logits wanted."""
    places = torch.arange(len(ids))
    tables = SlotTables(SPEC)
    tables.array[0] = np.arange(SPEC.num_blocks)
    one = [np.array([value], np.int32) for value in (0, 0, len(ids), len(ids))]
    return Batch(torch.tensor(ids), places, places, Rows(*one), tables, places[:-1])


@torch.inference_mode()
def predictions(model: ModelDirectory, kind: str, texts: list[list[int]]) -> Iterator[Predictions]:
    """Of each window, by one kind of arithmetic."""
    dtype, quantization, as_cuda = KINDS[kind]
    config = parse_config(model.config)
    parts = choose_parts(config, SPEC, dtype, CPU, "none" if as_cuda else quantization)
    if as_cuda:
        products = products_of(quantization, product_reference, deterministic=False)
        parts = parts._replace(make_linear=products.make_linear)
    with open_weights(model.weight_files, dtype=dtype, device=CPU) as weights:
        network = Llama(config, weights, parts.operators, parts.make_linear)
    kv = PagedKV(config, SPEC, dtype, CPU)
    for ids in texts:
        logits = network.forward(batch_of(ids), kv)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]))
        yield Predictions(float(loss), logits.argmax(-1))


def rows(found: dict[str, list[Predictions]]) -> list[Row]:
    """Perplexities, and how often the likeliest token is float32's."""
    exact = found["float32"]
    reference = math.exp(sum(each.loss for each in exact) / len(exact))
    lines = []
    for kind, each in found.items():
        perplexity = math.exp(sum(window.loss for window in each) / len(each))
        agreed = [
            float((mine.best == true.best).float().mean()) for mine, true in zip(each, exact, strict=True)
        ]
        gated = (
            {}
            if kind == "float32"
            else {"aim": f"<= {GATE} × float32", "met": perplexity <= GATE * reference}
        )
        compared = {} if kind == "float32" else {"peer": "float32", "peer_samples": [reference]}
        lines.append(row(kind, "perplexity", "1", [perplexity], **gated, **compared))  # type: ignore[arg-type]
        lines.append(row(kind, "likeliest_token_as_float32", "ratio", agreed))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default", help="a directory in Hugging Face's layout, or default")
    parser.add_argument("--windows", type=int, default=12, help=f"of {WINDOW} tokens, at most")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    model = resolve(options.model)
    texts = windows(model, options.windows)
    found = {kind: list(predictions(model, kind, texts)) for kind in KINDS}
    record("quality", rows(found), ["torch", "numba"], options.results)


if __name__ == "__main__":
    main()
