"""Natural log-probabilities of the chosen and of the best tokens, for the rows that ask."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.engine.torch.cuda.arguments import LogprobsOut

_ROWS = (
    "rows",
    "tokens",
    "values",
    "ids",
    "peaks",
    "sums",
    "chosen",
    "top",
    "top_ids",
)  # wherever they begin
_PART = tl.constexpr(4096)  # tokens of the vocabulary a program takes


@triton.jit(do_not_specialize_on_alignment=_ROWS)
def _rank(logits, rows, values, ids, peaks, sums, vocab, K: tl.constexpr):
    """The K best of a part, its peak and its mass."""
    row, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    tokens = part * _PART + tl.arange(0, _PART)
    source = logits + tl.load(rows + row).to(tl.int64) * vocab + tokens
    x = tl.load(source, mask=tokens < vocab, other=float("-inf")).to(tl.float32)
    peak = tl.max(x, 0)
    tl.store(peaks + row * parts + part, peak)
    base = tl.where(peak == float("-inf"), 0.0, peak)
    tl.store(sums + row * parts + part, tl.sum(tl.exp(x - base), 0))
    for place in range(K):
        top, lane = tl.max(x, 0, return_indices=True, return_indices_tie_break_left=True)
        target = (row * parts + part) * K + place
        tl.store(values + target, top)
        tl.store(ids + target, part * _PART + lane)
        x = tl.where(tokens == part * _PART + lane, float("-inf"), x)


@triton.jit(do_not_specialize_on_alignment=_ROWS)
def _merge(
    logits, rows, tokens, values, ids, peaks, sums, chosen, top, top_ids, vocab,
    K: tl.constexpr, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The K best of all parts, less the logarithm of all mass."""
    row = tl.program_id(0).to(tl.int64)
    parts = tl.arange(0, PARTS_BLOCK)
    mine = tl.load(peaks + row * PARTS + parts, mask=parts < PARTS, other=float("-inf"))
    peak = tl.max(mine, 0)
    mass = tl.load(sums + row * PARTS + parts, mask=parts < PARTS, other=0.0)
    less = tl.log(tl.sum(mass * tl.exp(mine - peak), 0))
    source = tl.load(rows + row).to(tl.int64)
    token = tl.maximum(tl.load(tokens + source), 0)
    tl.store(chosen + row, tl.load(logits + source * vocab + token).to(tl.float32) - peak - less)
    lanes = tl.arange(0, BLOCK)
    x = tl.load(values + row * PARTS * K + lanes, mask=lanes < PARTS * K, other=float("-inf"))
    for place in range(K):
        best, lane = tl.max(x, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(top + row * K + place, best - peak - less)
        tl.store(top_ids + row * K + place, tl.load(ids + row * PARTS * K + lane))
        x = tl.where(lanes == lane, float("-inf"), x)


def logprobs_workspace(rows: int, vocab: int, k: int) -> int:
    """fp32 numbers that `logprobs` needs for so many rows."""
    parts: int = -(-vocab // _PART.value)
    return rows * parts * (2 * k + 2)


def logprobs(
    logits: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    out: LogprobsOut,
    workspace: torch.Tensor,
) -> None:
    """See `reference.logprobs`."""
    count, k, vocab = len(rows), out.top.shape[1], logits.shape[1]
    parts = triton.cdiv(vocab, _PART.value)
    values, ids, peaks, sums = workspace[: count * parts * (2 * k + 2)].split(
        [count * parts * k, count * parts * k, count * parts, count * parts]
    )
    ids = ids.view(torch.int32)
    _rank[count, parts](
        logits, rows, values, ids, peaks, sums, vocab, K=k, num_warps=8, enable_fp_fusion=True
    )
    _merge[count,](
        logits, rows, tokens, values, ids, peaks, sums, out.chosen, out.top, out.top_ids, vocab,
        K=k, PARTS=parts, PARTS_BLOCK=triton.next_power_of_2(parts),
        BLOCK=triton.next_power_of_2(max(1, parts * k)), num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
