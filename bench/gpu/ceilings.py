"""What the card can do at most, measured in this run: what every other figure is a part of."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from bench.gpu.place import Place
from bench.gpu.timing import Timer
from bench.results_contract import Row, row

_BYTES = 4 << 30
_WIDTH = 8192  # of square products


class Ceilings(NamedTuple):
    """Each the best of its repeats: a ceiling is what is possible."""

    read: float  # bytes a second
    copy: float  # bytes a second, read and written
    bf16: float  # FLOPs a second
    fp8: float | None  # of products with a scale a row; None where this card or torch has none


def measure_ceilings(place: Place, timer: Timer) -> tuple[Ceilings, list[Row]]:
    """Takes some seconds and 8 GiB."""
    rows: list[Row] = []

    def best(metric: str, unit: str, amount: float, works: list[Callable[[], object]]) -> float:
        rates = max(([amount / s for s in timer.seconds(work)] for work in works), key=max)
        scale = {"GB/s": 1e9, "TFLOP/s": 1e12}[unit]
        rows.append(row("ceilings", metric, unit, [rate / scale for rate in rates]))
        return max(rates)

    source = place.random(place.size(_BYTES, 1 << 12) // 4, dtype=torch.float32)
    read = best("read-only", "GB/s", source.nbytes, list(_readers(place, source)))
    target = torch.empty_like(source)
    copying = partial(target.copy_, source)
    copy = best("copy, read and written", "GB/s", 2 * source.nbytes, [copying])
    del source, target, copying
    place.release()
    width = place.size(_WIDTH, 32)
    left, right = (place.random(width, width, seed=seed) for seed in (1, 2))
    out = torch.empty_like(left)
    bf16 = best("bf16 product", "TFLOP/s", 2.0 * width**3, [lambda: torch.mm(left, right.t(), out=out)])
    product = _fp8_product(left, right)
    fp8 = (
        None if product is None else best("fp8 product, a scale a row", "TFLOP/s", 2.0 * width**3, [product])
    )
    place.release()
    return Ceilings(read, copy, bf16, fp8), rows


def _readers(place: Place, source: torch.Tensor) -> Iterator[Callable[[], object]]:
    """torch's own sum, and a kernel that does nothing but read."""
    total = torch.empty((), device=source.device)
    yield lambda: torch.sum(source, dim=0, out=total)
    if place.on_card:
        reader = importlib.import_module("bench.gpu.reader")
        out = torch.empty(reader.programs(source), device=source.device)
        yield lambda: reader.read(source, out)


def _fp8_product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], object] | None:
    """Values in [-3, 3] fit e4m3 as they are."""
    kind = torch.float8_e4m3fn
    try:
        x, weight = left.to(kind), right.to(kind)
        scale_x, scale_w = (torch.ones(len(each), 1, device=each.device) for each in (left, right))

        def work() -> object:
            return torch._scaled_mm(
                x,
                weight.t(),
                scale_a=scale_x,
                scale_b=scale_w.t(),
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )

        work()
    except (RuntimeError, ValueError, TypeError) as error:
        print(f"no fp8 products here: {str(error)[:100]}", flush=True)
        return None
    return work
