"""From logits to ids, without a sort: each step over parts of 4,096 tokens, or over all parts of a row.

    prepare   penalties, masks; the best of a part      weigh    count and mass above 16 levels
    keep      what lies above the level that must       search   the exact threshold among these, by bisection
              hold top-k and top-p                      draw     best noisy token of a part
    pick      the best of all parts

Greedy rows leave all but the first and the last at once.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from services.worker.engine.torch.cuda.arguments import GrammarMasks, SamplingState

_ROWS = ("slots", "indices", "which", "tokens_out")  # parts of the inputs of a step, wherever they begin
_PART = tl.constexpr(4096)  # tokens of the vocabulary a program of `sample` takes
_STRIP = tl.constexpr(512)  # of them it weighs at once
_LEVELS = tl.constexpr(16)  # thresholds that mass is weighed at
_GUMBEL_MAX = tl.constexpr(22.870856)  # philox.GUMBEL_MAX, rounded up
_SLACK = tl.constexpr(2e-4)  # above the error of noise in fp32, 1e-5
_NOWHERE = tl.constexpr(0x7F800000)  # infinitely far behind, as bits
_MOST_COUNTED = tl.constexpr(0x7FFF)


@triton.jit
def _words(low, high, index, group):
    """The four words of tokens 4 * group ..; see philox.py."""
    zero = group * 0
    counter = index.to(tl.uint32, bitcast=True) + zero
    keys = low.to(tl.uint32, bitcast=True) + zero, high.to(tl.uint32, bitcast=True) + zero
    return tl.philox_impl(counter, group, zero, zero, keys[0], keys[1])


@triton.jit
def _word(seed, slot, index, token):
    """The words of single tokens; below zero there is none."""
    token = tl.maximum(token, 0)
    a, b, c, d = _words(
        tl.load(seed + slot * 2), tl.load(seed + slot * 2 + 1), index, (token >> 2).to(tl.uint32)
    )
    lane = token & 3
    return tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))


@triton.jit
def _noise(word):
    """Gumbel noise in fp64, as philox.gumbel."""
    return -tl.log(-tl.log((word.to(tl.float64) + 0.5) * 2.3283064365386963e-10))


@triton.jit
def _quick_noise(word):
    """Gumbel noise within 1e-5, in fp32: a uniform number near 1 by what it lacks."""
    lacks = ((~word).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = lacks * (1.0 + lacks * (0.5 + lacks * (1 / 3 + lacks * (0.25 + lacks * (0.2 + lacks / 6)))))
    uniform = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    direct = -tl.log(tl.where(lacks < 0.5, 1.0 - lacks, uniform))
    return -tl.log(tl.where(lacks < 0.0625, series, direct))


@triton.jit
def _scores(values, peak, temperature):
    """Scores whose best is 0."""
    scores = tl.div_rn(values - peak, temperature)
    return tl.where(scores != scores, 0.0, scores)


@triton.jit
def _gap_of(level):
    """How far behind the best a level reaches, exactly; the last one takes all."""
    return tl.where(level < _LEVELS - 1, 0.125 * (level + 1) * (level + 1), float("inf"))


@triton.jit
def _row_peak(best, row, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr):
    parts = tl.arange(0, PARTS_BLOCK)
    bests = tl.load(best + row * PARTS + parts, mask=parts < PARTS, other=float("-inf"))
    return tl.max(bests, 0)


@triton.jit
def _filtered(top_k, top_p, slot, vocab):
    limit = tl.load(top_k + slot)
    return (limit > 0) & (limit < vocab), tl.load(top_p + slot) < 1.0


@triton.jit(do_not_specialize_on_alignment=_ROWS)
def _prepare(
    logits, slots, indices, which, bits, mask_words, temperature, repetition, presence, frequency, min_tokens,
    unstopped, history, scores, best, first, vocab, words, MASKED: tl.constexpr, DRAWS: tl.constexpr,
):  # fmt: skip
    """Penalties and masks; the best of a part, and where it is first. NaN counts as infinite."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    tokens = part * _PART + tl.arange(0, _PART)
    inside = tokens < vocab
    x = tl.load(logits + row * vocab + tokens, mask=inside, other=float("-inf")).to(tl.float32)
    repeat, present, often = (
        tl.load(repetition + slot),
        tl.load(presence + slot),
        tl.load(frequency + slot),
    )
    if (repeat != 1.0) | (present != 0.0) | (often != 0.0):
        seen = tl.load(history + slot * vocab + tokens, mask=inside, other=0).to(tl.int32)
        count = seen & _MOST_COUNTED
        scaled = tl.where(x > 0, tl.div_rn(x, repeat + x * 0.0), x * repeat)
        x = tl.where(seen != 0, scaled, x) - tl.where(count > 0, present, 0.0) - often * count
    mask_row = unstopped + slot * words
    masked = tl.load(indices + row) < tl.load(min_tokens + slot)
    if MASKED:
        grammar = tl.load(which + row).to(tl.int64)
        mask_row = tl.where(grammar >= 0, bits + grammar * mask_words, mask_row)
        masked = masked | (grammar >= 0)
    if masked:
        word = tl.load(mask_row + (tokens >> 5), mask=inside, other=0)
        x = tl.where(((word >> (tokens & 31)) & 1) != 0, x, float("-inf"))
    x = tl.where(x != x, float("inf"), x)
    peak, place = tl.max(x, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(best + row * tl.num_programs(1) + part, peak)
    tl.store(first + row * tl.num_programs(1) + part, part * _PART + place)
    if DRAWS:  # noqa: SIM102
        if tl.load(temperature + slot) > 0:
            tl.store(scores + row * vocab + tokens, x, mask=inside)


@triton.jit(do_not_specialize_on_alignment=_ROWS)
def _weigh(
    slots, temperature, top_k, top_p, scores, best, counts, masses, vocab,
    PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr,
):  # fmt: skip
    """How many tokens of a part, and what mass of probability, lie above each level."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    limited, nuclear = _filtered(top_k, top_p, slot, vocab)
    heat = tl.load(temperature + slot)
    if (heat > 0) & (limited | nuclear):
        peak = _row_peak(best, row, PARTS, PARTS_BLOCK)
        levels = tl.arange(0, _LEVELS)
        gaps = _gap_of(levels)[:, None]
        count = tl.zeros([_LEVELS, _STRIP], tl.int32)
        mass = tl.zeros([_LEVELS, _STRIP], tl.float32)
        for begin in range(part * _PART, tl.minimum(part * _PART + _PART, vocab), _STRIP):
            tokens = begin + tl.arange(0, _STRIP)
            values = tl.load(scores + row * vocab + tokens, mask=tokens < vocab, other=float("-inf"))
            behind = tl.abs(_scores(values, peak, heat))[None, :]
            above = (behind <= gaps) & (tokens < vocab)[None, :]
            count += above.to(tl.int32)
            mass += tl.where(above, tl.exp(-behind), 0.0)
        target = (row * PARTS + part) * _LEVELS + levels
        tl.store(counts + target, tl.sum(count, 1))
        tl.store(masses + target, tl.sum(mass, 1))


@triton.jit(do_not_specialize_on_alignment=_ROWS)
def _keep(
    slots, temperature, top_k, top_p, scores, best, counts, masses, kept, lengths, totals, vocab,
    PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr,
):  # fmt: skip
    """How far behind the best they are, of all tokens above the first level that must hold what is wanted."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    limited, nuclear = _filtered(top_k, top_p, slot, vocab)
    heat = tl.load(temperature + slot)
    if (heat > 0) & (limited | nuclear):
        parts = tl.arange(0, PARTS_BLOCK)[:, None]
        levels = tl.arange(0, _LEVELS)
        source = (row * PARTS + parts) * _LEVELS + levels[None, :]
        count = tl.load(counts + source, mask=parts < PARTS, other=0)  # [parts, levels]
        mass = tl.sum(tl.load(masses + source, mask=parts < PARTS, other=0.0).to(tl.float64), 0)
        total = tl.max(mass, 0)
        holds = tl.where(limited, tl.sum(count, 0) >= tl.load(top_k + slot), False)
        enough = mass >= tl.load(top_p + slot) * total * 1.00001
        holds = tl.where(limited, holds, enough) | (levels == _LEVELS - 1)
        level = tl.min(tl.where(holds, levels, _LEVELS), 0)
        mine = tl.sum(tl.where(levels[None, :] == level, count, 0), 1)  # [parts]
        lanes = tl.arange(0, PARTS_BLOCK)
        begin = tl.sum(tl.where(lanes < part, mine, 0), 0)
        tokens = part * _PART + tl.arange(0, _PART)
        values = tl.load(scores + row * vocab + tokens, mask=tokens < vocab, other=float("-inf"))
        behind = tl.abs(_scores(values, _row_peak(best, row, PARTS, PARTS_BLOCK), heat))
        above = (behind <= _gap_of(level)) & (tokens < vocab)
        target = begin + tl.cumsum(above.to(tl.int32), 0) - 1
        tl.store(kept + row * vocab + target, behind, mask=above)
        if part == 0:
            tl.store(lengths + row, tl.sum(mine, 0))
            tl.store(totals + row, total.to(tl.float32))


@triton.jit
def _measure(kept, length, middle, less, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """Of the scores at `middle` or better: their number, or sum of exp(score - less), each in fp64 of a
    difference in fp32, as the sampler takes it. And the last score within, and the first one beyond.
    """
    amount = tl.zeros([BLOCK], tl.float64 if MASS else tl.int32)
    last = tl.zeros([BLOCK], tl.int32)
    following = tl.full([BLOCK], _NOWHERE, tl.int32)
    for begin in range(0, length, BLOCK):
        inside = begin + tl.arange(0, BLOCK) < length
        behind = tl.load(kept + begin + tl.arange(0, BLOCK), mask=inside, other=float("inf"))
        place = behind.to(tl.int32, bitcast=True)
        within = inside & (place <= middle)
        if MASS:
            amount += tl.where(within, tl.exp((-behind - less).to(tl.float64)), 0.0)
        else:
            amount += within.to(tl.int32)
        last = tl.maximum(last, tl.where(within, place, 0))
        following = tl.minimum(following, tl.where(within, _NOWHERE, place))
    return tl.sum(amount, 0), tl.max(last, 0), tl.min(following, 0)


@triton.jit
def _smallest(kept, length, bound, wanted, less, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """How far one must go for so many, or so much, but not beyond `bound`; by bisection between scores."""
    low = 0
    while low < bound:
        amount, last, following = _measure(kept, length, low + (bound - low) // 2, less, MASS, BLOCK)
        if amount >= wanted:
            bound = last
        else:
            low = following
    return bound


@triton.jit(do_not_specialize_on_alignment=_ROWS)
def _search(
    slots, temperature, top_k, top_p, log_min_p, kept, lengths, totals, floors, vocab, BLOCK: tl.constexpr
):
    """The smallest score that may be drawn. How far it is behind, not below 0, orders like its bits."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if tl.load(temperature + slot) > 0:
        limited, nuclear = _filtered(top_k, top_p, slot, vocab)
        bound = _NOWHERE + 0 * tl.load(lengths + row)
        kept += row * vocab
        if limited | nuclear:
            length = tl.load(lengths + row)
            less = tl.log(tl.load(totals + row))
            if limited:
                bound = _smallest(kept, length, bound, tl.load(top_k + slot), 0.0, False, BLOCK)
                mass, _, _ = _measure(kept, length, bound, 0.0, True, BLOCK)
                less = tl.log(mass).to(tl.float32)
            if nuclear:
                bound = _smallest(kept, length, bound, tl.load(top_p + slot), less, True, BLOCK)
        floor = -(bound + tl.zeros([1], tl.int32)).to(tl.float32, bitcast=True)
        floor = tl.maximum(floor, tl.load(log_min_p + slot))
        tl.store(floors + row + tl.arange(0, 1), floor)


@triton.jit(do_not_specialize_on_alignment=_ROWS)
def _draw(
    slots, indices, temperature, log_min_p, seed, scores, best, first, floors, winners, vocab,
    PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr, FILTERS: tl.constexpr,
):  # fmt: skip
    """The token of a part with the best noisy score; -1 where none can win.

    Noise in fp32 tells it apart from all but those that are as good within the error; only these take fp64.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    heat = tl.load(temperature + slot)
    if heat > 0:
        index = tl.load(indices + row)
        parts = tl.arange(0, PARTS_BLOCK)
        bests = tl.load(best + row * PARTS + parts, mask=parts < PARTS, other=float("-inf"))
        peak = tl.max(bests, 0)
        likeliest = tl.load(first + row * PARTS + tl.argmax(bests, 0))
        floor = tl.load(floors + row) if FILTERS else tl.load(log_min_p + slot)
        to_beat = _quick_noise(_word(seed, slot, index, likeliest)) - _SLACK
        mine = _scores(tl.load(best + row * PARTS + part), peak, heat)
        winner = -1
        if (mine >= floor) & (mine + _GUMBEL_MAX >= to_beat):
            tokens = part * _PART + tl.arange(0, _PART)
            values = tl.load(scores + row * vocab + tokens, mask=tokens < vocab, other=float("-inf"))
            behind = _scores(values, peak, heat)
            groups = (part * (_PART // 4) + tl.arange(0, _PART // 4)).to(tl.uint32)
            a, b, c, d = _words(tl.load(seed + slot * 2), tl.load(seed + slot * 2 + 1), index, groups)
            words = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
            allowed = (behind >= floor) & (tokens < vocab)
            noisy = tl.where(allowed, behind + _quick_noise(words), float("-inf"))
            top, place = tl.max(noisy, 0, return_indices=True, return_indices_tie_break_left=True)
            close = allowed & (noisy >= top - _SLACK)
            if tl.sum(close.to(tl.int32), 0) > 1:
                exact = tl.where(close, behind.to(tl.float64) + _noise(words), float("-inf"))
                place = tl.min(tl.where(exact == tl.max(exact, 0), tl.arange(0, _PART), _PART), 0)
            winner = tl.where(top > float("-inf"), part * _PART + place, -1)
        tl.store(winners + row * PARTS + part, winner)


@triton.jit(do_not_specialize_on_alignment=_ROWS)
def _pick(
    slots, indices, temperature, repetition, presence, frequency, seed, history, last_token, scores, best,
    first, winners, tokens_out, vocab, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr, DRAWS: tl.constexpr,
):  # fmt: skip
    """The best of all parts, the smaller id where two are equal; kept in the slot, counted there."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    parts = tl.arange(0, PARTS_BLOCK)
    inside = parts < PARTS
    bests = tl.load(best + row * PARTS + parts, mask=inside, other=float("-inf"))
    peak = tl.max(bests, 0)
    token = tl.load(first + row * PARTS + tl.argmax(bests, 0))
    heat = tl.load(temperature + slot)
    if DRAWS:  # noqa: SIM102
        if heat > 0:
            ids = tl.load(winners + row * PARTS + parts, mask=inside, other=-1)
            values = tl.load(scores + row * vocab + ids, mask=ids >= 0, other=float("-inf"))
            noise = _noise(_word(seed, slot, tl.load(indices + row), ids))
            noisy = tl.where(ids >= 0, _scores(values, peak, heat).to(tl.float64) + noise, float("-inf"))
            token = tl.min(tl.where(noisy == tl.max(noisy, 0), ids, vocab), 0)
    finite = (peak < float("inf")) & (peak > float("-inf"))
    tl.store(tokens_out + row, tl.where(finite, token, -2))
    token = tl.where(finite, token, 0)
    tl.store(last_token + slot, token)
    repeat, present, often = tl.load(repetition + slot), tl.load(presence + slot), tl.load(frequency + slot)
    if (repeat != 1.0) | (present != 0.0) | (often != 0.0):
        seen = tl.load(history + slot * vocab + token).to(tl.int32)
        more = ((seen & _MOST_COUNTED) < _MOST_COUNTED).to(tl.int32)
        tl.store(history + slot * vocab + token, (seen + more).to(tl.int16))


class _Sampling(NamedTuple):
    """Parts of the workspace of `sample`."""

    scores: torch.Tensor  # fp32 [rows, vocab], penalised and masked
    kept: torch.Tensor  # fp32 [rows, vocab], how far behind the best
    masses: torch.Tensor  # fp32 [rows, parts, levels]
    counts: torch.Tensor  # int32 [rows, parts, levels]
    best: torch.Tensor  # fp32 [rows, parts]
    first: torch.Tensor  # int32 [rows, parts]
    winners: torch.Tensor  # int32 [rows, parts]
    lengths: torch.Tensor  # int32 [rows]
    totals: torch.Tensor  # fp32 [rows]
    floors: torch.Tensor  # fp32 [rows]


def sampling_workspace(rows: int, vocab: int) -> int:
    """fp32 numbers that `sample` needs for a bucket."""
    parts: int = -(-vocab // _PART.value)
    levels: int = _LEVELS.value
    sizes = (rows * vocab, rows * parts * levels, rows * parts, rows)
    return sum(count * _aligned(size) for count, size in zip((2, 2, 3, 3), sizes, strict=True))


def sample(
    logits: torch.Tensor,
    slots: torch.Tensor,
    indices: torch.Tensor,
    masks: GrammarMasks | None,
    state: SamplingState,
    tokens_out: torch.Tensor,
    workspace: torch.Tensor,
    *,
    draws: bool = True,
    filters: bool = True,
) -> None:
    """See `reference.sample`."""
    rows, vocab = logits.shape
    room = _sampling_parts(workspace, rows, vocab)
    parts = room.best.shape[1]
    shape = {
        "PARTS": parts,
        "PARTS_BLOCK": triton.next_power_of_2(parts),
        "num_warps": 8,
        "enable_fp_fusion": True,
    }
    which, bits = (slots, state.unstopped) if masks is None else masks
    penalties = (state.repetition, state.presence, state.frequency)
    filtering = (state.top_k, state.top_p)
    _prepare[rows, parts](
        logits, slots, indices, which, bits, bits.shape[1], state.temperature, *penalties, state.min_tokens,
        state.unstopped, state.history, room.scores, room.best, room.first, vocab,
        state.unstopped.shape[1], MASKED=masks is not None, DRAWS=draws, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    if draws and filters:
        _weigh[rows, parts](
            slots, state.temperature, *filtering, room.scores, room.best, room.counts, room.masses, vocab,
            **shape,
        )  # fmt: skip
        _keep[rows, parts](
            slots, state.temperature, *filtering, room.scores, room.best, room.counts, room.masses,
            room.kept, room.lengths, room.totals, vocab, **shape,
        )  # fmt: skip
        _search[rows,](
            slots, state.temperature, *filtering, state.log_min_p, room.kept, room.lengths, room.totals,
            room.floors, vocab, BLOCK=2048, num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
    if draws:
        _draw[rows, parts](
            slots, indices, state.temperature, state.log_min_p, state.seed, room.scores, room.best,
            room.first, room.floors, room.winners, vocab, FILTERS=filters, **shape,
        )  # fmt: skip
    shape["num_warps"] = 1
    _pick[rows,](
        slots, indices, state.temperature, *penalties, state.seed, state.history, state.last_token,
        room.scores, room.best, room.first, room.winners, tokens_out, vocab, DRAWS=draws, **shape,
    )  # fmt: skip


def _sampling_parts(workspace: torch.Tensor, rows: int, vocab: int) -> _Sampling:
    parts, levels = triton.cdiv(vocab, _PART.value), _LEVELS.value
    shapes = (
        (rows, vocab), (rows, vocab), (rows, parts, levels), (rows, parts, levels),
        (rows, parts), (rows, parts), (rows, parts), (rows,), (rows,), (rows,),
    )  # fmt: skip
    sizes = [torch.Size(shape).numel() for shape in shapes]
    begins = [0, *accumulate(map(_aligned, sizes))]
    pieces = (workspace[begin : begin + size] for begin, size in zip(begins, sizes, strict=False))
    room = _Sampling(*(piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)))
    integer = ("counts", "first", "winners", "lengths")
    return room._replace(**{name: getattr(room, name).view(torch.int32) for name in integer})


def _aligned(numbers: int) -> int:
    """Parts begin where wide loads may: whatever the vocabulary's size, one compiled kernel serves all."""
    return -(-numbers // 32) * 32
