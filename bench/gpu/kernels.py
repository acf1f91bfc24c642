"""Part `kernels`: each kernel in GB/s and TFLOP/s against ceilings measured in the same run.

    python -m bench.gpu kernels

Bytes are the fewest that have to be moved (each input read once, each output written once), so what is read
twice counts as lost bandwidth. Alternatives stand beside, on the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from bench.gpu.build import products_of
from bench.gpu.ceilings import Ceilings, measure_ceilings
from bench.gpu.paged import BLOCK, Heads, Paged
from bench.gpu.place import OutOfTime, Place
from bench.gpu.sampling import WAYS, drawn
from bench.gpu.timing import Timer
from bench.results_contract import Row, row
from services.worker.engine.errors import EngineLoadError
from services.worker.engine.torch.cuda.arguments import LogprobsOut
from services.worker.engine.torch.cuda.attention import AttentionShape
from services.worker.engine.torch.cuda.attention.choice import Left, available

LLAMA_8B = Heads(queries=32, keys=8, dim=128)
_HIDDEN, _FFN, _VOCAB = 4096, 14_336, 128_256
_DECODES = ((1, 1024), (1, 32_768), (16, 4096), (64, 1024), (64, 8192), (256, 1024), (256, 4096))
_PREFILLS = ((1, 2048, 0), (1, 2048, 30_720), (1, 8192, 0), (4, 512, 4096))  # rows, queries, context before
_TOKENS = (1, 64, 256, 2048)


class Amount(NamedTuple):
    """What a case has to move and to compute."""

    moved: float  # bytes
    flops: float = 0.0


class Bench:
    """Times cases and makes their rows."""

    def __init__(self, place: Place, timer: Timer, ceilings: Ceilings) -> None:
        self.place = place
        self.timer = timer
        self.ceilings = ceilings

    def rows(
        self,
        case: str,
        work: Callable[[], object],
        amount: Amount,
        *,
        graph: bool = True,
        peak: float | None = None,
    ) -> Iterator[Row]:
        """Time, and the rate of what limits: bytes, or FLOPs whose ceiling is `peak` (unset: bf16)."""
        seconds = self.timer.seconds(work, graph=graph)
        yield row(case, "time", "µs", [1e6 * each for each in seconds])
        peak = peak or self.ceilings.bf16
        if amount.flops / peak > amount.moved / self.ceilings.read:
            rates = [amount.flops / each / 1e12 for each in seconds]
            yield row(case, "rate", "TFLOP/s", rates, peer="product ceiling", peer_samples=[peak / 1e12])
        else:
            rates = [amount.moved / each / 1e9 for each in seconds]
            yield row(
                case, "rate", "GB/s", rates, peer="read ceiling", peer_samples=[self.ceilings.read / 1e9]
            )


def measure(place: Place) -> Iterator[Row]:
    """All kernels, as long as there is time."""
    timer = Timer(place)
    ceilings, rows = measure_ceilings(place, timer)
    yield from rows
    bench, kernels = Bench(place, timer, ceilings), place.kernels()
    parts = (_decodes, _prefills, _sampling, _products, _rowwise, _placing)
    with torch.inference_mode():
        for part in parts:
            try:
                for each in part(bench, kernels):
                    place.need(0.0)
                    yield each
            except OutOfTime:
                print(f"{part.__name__.strip('_')}: cut short, time is up", flush=True)
            place.release()


def _decodes(bench: Bench, kernels: ModuleType) -> Iterator[Row]:
    for batch, context in ((2, 100), (3, 64)) if bench.place.dry else _DECODES:
        paged = Paged(bench.place, _heads(bench.place), [1] * batch, [context] * batch)
        yield from _attention(bench, kernels, f"decode attention, {batch} × {context}", paged)
        bench.place.release()


def _prefills(bench: Bench, kernels: ModuleType) -> Iterator[Row]:
    for rows, queries, before in ((2, 8, 60),) if bench.place.dry else _PREFILLS:
        paged = Paged(bench.place, _heads(bench.place), [queries] * rows, [before + queries] * rows)
        case = f"prefill attention, {rows} × {queries} after {before}"
        yield from _attention(bench, kernels, case, paged)
        bench.place.release()


def _attention(bench: Bench, kernels: ModuleType, case: str, paged: Paged) -> Iterator[Row]:
    amount = Amount(paged.kv_bytes + 2 * paged.query.nbytes, paged.flops)
    workspace = paged.workspace(kernels)
    yield from bench.rows(case, lambda: paged.attend(kernels.attend, workspace), amount)
    fixed = paged.workspace(kernels, deterministic=True)
    work = partial(paged.attend, kernels.attend, fixed, deterministic=True)
    yield from bench.rows(f"{case}, deterministic", work, amount)
    for name, other, captures in _alternatives(paged):
        try:
            yield from bench.rows(f"{case}, {name}", other, amount, graph=captures)
        except Exception as error:  # others' code: what it raises says why it has no row
            print(f"{case}, {name}: {type(error).__name__} {str(error)[:100]}", flush=True)


def _alternatives(paged: Paged) -> Iterator[tuple[str, Callable[[], object], bool]]:
    """Those of production that are to be had here, and whether they can be captured; SDPA as a yardstick."""
    heads, width = paged.heads, paged.tables.shape[1]
    shape = AttentionShape(
        heads.queries, heads.keys, heads.dim, BLOCK, width, paged.dtype, paged.query.device
    )
    nothing = torch.empty(0, device=paged.query.device)
    for each in available(shape):
        if isinstance(each, Left):
            print(f"{each.name}: {each.reason}", flush=True)
            continue
        each.plan(paged.on_host, paged.tables)
        yield each.name, partial(paged.attend, each, nothing), each.captures
    if paged.queries[0] in (1, paged.contexts[0]):  # else the last queries of a context: SDPA masks the first
        sdpa = partial(
            functional.scaled_dot_product_attention, is_causal=paged.queries[0] > 1, enable_gqa=True
        )
        yield "SDPA on contiguous KV", partial(sdpa, *paged.contiguous()), True


def _sampling(bench: Bench, kernels: ModuleType) -> Iterator[Row]:
    vocab = bench.place.size(_VOCAB, 200)
    for rows in (2,) if bench.place.dry else (1, 64, 256):
        for name, way in WAYS.items():
            given = drawn(bench.place, [way] * rows, vocab)
            workspace = _floats(bench.place, kernels.sampling_workspace(rows, vocab))
            amount = Amount(given.logits.nbytes)
            case = f"sampling, {rows} × {vocab}, {name}"
            yield from bench.rows(case, partial(given.run, kernels, workspace), amount)
        yield from _logprobs(bench, kernels, rows, vocab)


def _logprobs(bench: Bench, kernels: ModuleType, rows: int, vocab: int) -> Iterator[Row]:
    given = drawn(bench.place, [WAYS["greedy"]] * rows, vocab)
    given.tokens.zero_()
    k, device = 5, bench.place.device
    out = LogprobsOut(
        torch.empty(rows, device=device),
        torch.empty(rows, k, device=device),
        torch.empty(rows, k, dtype=torch.int32, device=device),
    )
    workspace = _floats(bench.place, kernels.logprobs_workspace(rows, vocab, k))
    work = partial(kernels.logprobs, given.logits, given.slots, given.tokens, out, workspace)
    yield from bench.rows(f"log-probabilities, {rows} × {vocab}, {k} best", work, Amount(given.logits.nbytes))


def _products(bench: Bench, kernels: ModuleType) -> Iterator[Row]:
    """The gate and up projection of an 8B Llama, by every kind of product that production has here."""
    place = bench.place
    columns, rows = place.size(_HIDDEN, 64), place.size(2 * _FFN, 96)
    weight = place.random(rows, columns, seed=3) / columns**0.5
    for name, linear, weight_bytes, fp8 in _linears(place, weight):
        for tokens in (2,) if place.dry else _TOKENS:
            x = place.random(tokens, columns, seed=4)
            moved = weight.numel() * weight_bytes + x.nbytes + 2.0 * tokens * rows
            case = f"product, {tokens} × {columns} × {rows}, {name}"
            peak = bench.ceilings.fp8 if fp8 else None
            work = partial(linear, x)
            yield from bench.rows(case, work, Amount(moved, 2.0 * tokens * rows * columns), peak=peak)


_KINDS = (("none", False), ("none", True), ("fp8", False), ("fp8", True), ("int8", False))


def _linears(place: Place, weight: torch.Tensor) -> Iterator[tuple[str, Any, float, bool]]:
    """Name, product, bytes of a weight, whether it multiplies in 8 bits."""
    for quantization, deterministic in _KINDS:
        try:
            products = products_of(place, quantization, deterministic=deterministic)
        except EngineLoadError as error:
            print(f"products: {error}", flush=True)
            continue
        name = f"{quantization}, fixed order" if deterministic else quantization
        name = name.replace("none", "bf16")
        eight = quantization != "none"
        yield name, products.make_linear(weight), 1.0 if eight else 2.0, eight and not deterministic


def _rowwise(bench: Bench, kernels: ModuleType) -> Iterator[Row]:
    hidden, ffn = bench.place.size(_HIDDEN, 64), bench.place.size(_FFN, 96)
    for tokens in (3,) if bench.place.dry else (64, 256, 8192):
        x, delta = (bench.place.random(tokens, hidden, seed=seed) for seed in (1, 2))
        weight, out = bench.place.random(hidden, seed=3), torch.empty_like(x)
        work = partial(kernels.add_norm, x, delta, weight, 1e-5, out)
        yield from bench.rows(f"add_norm, {tokens} × {hidden}", work, Amount(4.0 * x.nbytes))
        merged = bench.place.random(tokens, 2 * ffn, seed=5)
        gated = torch.empty(tokens, ffn, dtype=merged.dtype, device=merged.device)
        amount = Amount(1.5 * merged.nbytes)
        yield from bench.rows(f"gate, {tokens} × {ffn}", partial(kernels.gate, merged, gated), amount)


def _placing(bench: Bench, kernels: ModuleType) -> Iterator[Row]:
    heads = _heads(bench.place)
    for tokens in (3,) if bench.place.dry else (64, 256, 8192):
        paged = Paged(bench.place, heads, [tokens], [tokens])
        merged = bench.place.random(tokens, (heads.queries + 2 * heads.keys) * heads.dim, seed=2)
        half = torch.arange(tokens, device=merged.device)[:, None] * torch.ones(
            heads.dim // 2, device=merged.device
        )
        positions = torch.arange(tokens, dtype=torch.int32, device=merged.device)
        places = torch.randperm(tokens, device=merged.device).int()
        work = partial(
            kernels.place,
            merged, None, None, 1e-5, half.cos(), half.sin(), positions, places, paged.pool, paged.query,
            heads.queries, heads.keys,
        )  # fmt: skip
        yield from bench.rows(f"rotate and place, {tokens} tokens", work, Amount(2.0 * merged.nbytes))


def _heads(place: Place) -> Heads:
    return Heads(queries=6, keys=2, dim=64) if place.dry else LLAMA_8B


def _floats(place: Place, numbers: int) -> torch.Tensor:
    return torch.empty(max(1, int(numbers)), dtype=torch.float32, device=place.device)
