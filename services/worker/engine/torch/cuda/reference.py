"""The kernels' functions in plain torch: what they mean, what tests compare with, what runs without a GPU.

Same names and signatures as `kernels`. Outputs and workspaces are passed in. Arithmetic is in fp32, or wider,
and rounded once. These read the batch on the host: nothing here can be captured.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from services.worker.engine.torch.cuda.arguments import (
    BITS,
    AttentionRows,
    GrammarMasks,
    LogprobsOut,
    SamplingState,
)
from services.worker.engine.torch.gumbel import Draw, choose

_NOT_FINITE = -2  # scheduler.step.NOT_FINITE
_MOST_COUNTED = 0x7FFF
_WORD = 0xFFFFFFFF


def attention_workspace(
    rows: int,
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    width: int,
    *,
    deterministic: bool = False,
) -> int:
    """fp32 numbers that `attend` needs beside its output, for a bucket; width: blocks of a table."""
    return 0


def sampling_workspace(rows: int, vocab: int) -> int:
    """fp32 numbers that `sample` needs for a bucket."""
    return 0


def logprobs_workspace(rows: int, vocab: int, k: int) -> int:
    """fp32 numbers that `logprobs` needs for so many rows."""
    return 0


def add_norm(
    hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> None:
    """hidden += delta in place, then out = rms_norm(hidden) * weight; all [tokens, hidden]."""
    if delta is not None:
        hidden += delta
    out.copy_(_norm(hidden, weight, eps))


def place(
    merged: torch.Tensor,
    query_norm: torch.Tensor | None,
    key_norm: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    places: torch.Tensor,
    pool: torch.Tensor,
    query_out: torch.Tensor,
    heads: int,
    kv_heads: int,
) -> None:
    """Rotated queries to query_out, rotated keys and values into a layer's pool.

    merged: [tokens, (heads + 2 kv_heads) * head_dim], query_out: [tokens, heads, head_dim]; norms: [head_dim]
    of query and key heads, both or none; cos, sin: tables [max_len, head_dim / 2]; positions: int [tokens];
    places: int [tokens], rows of the pool; pool: [2, blocks + 1, block_size, kv_heads, head_dim].
    """
    by_head = merged.view(len(merged), heads + 2 * kv_heads, -1)
    query, key, value = by_head.tensor_split((heads, heads + kv_heads), dim=1)
    rotations = cos[positions.long()].float().unsqueeze(1), sin[positions.long()].float().unsqueeze(1)
    rows = pool.view(2, -1, kv_heads, query_out.shape[-1])
    query_out.copy_(_rotate(_norm(query, query_norm, eps), *rotations))
    rows[0, places.long()] = _rotate(_norm(key, key_norm, eps), *rotations).to(pool.dtype)
    rows[1, places.long()] = value.to(pool.dtype)


def gate(merged: torch.Tensor, out: torch.Tensor) -> None:
    """out = silu(gate) * up of merged [tokens, 2 ffn], gate first; out: [tokens, ffn]."""
    gate, up = merged.float().chunk(2, dim=-1)
    out.copy_(functional.silu(gate) * up)


def attend(
    query: torch.Tensor,
    pool: torch.Tensor,
    rows: AttentionRows,
    tables: torch.Tensor,
    out: torch.Tensor,
    workspace: torch.Tensor,
    *,
    scale: float,
    block_size: int,
    deterministic: bool = False,
) -> None:
    """Causal attention of each row's queries, the last ones of its context, over a layer's pool.

    query, out: [tokens, heads, head_dim]; tables: int32 [max_seqs + 1, width], blocks of each slot in order.
    `deterministic`: a query's result does not depend on the batch, nor on the chunk it is computed in.
    """
    starts, contexts, slots = rows.starts.tolist(), rows.contexts.tolist(), rows.slots.tolist()
    for row, (slot, context) in enumerate(zip(slots, contexts, strict=True)):
        queries = slice(starts[row], starts[row + 1])
        if queries.start == queries.stop:
            continue
        blocks = tables[slot, : -(-context // block_size)].long()
        keys, values = pool[:, blocks].flatten(1, 2)[:, :context]  # each [context, kv_heads, head_dim]
        out[queries] = _attended(query[queries], keys, values, scale).to(out.dtype)


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
    """Choose a token a row as `engine.torch.sampler` does, on equal logits the same.

    Penalties, bans, temperature, top-k, top-p, min-p, noise. logits: [rows, vocab], left as they are; slots:
    int32 [rows]; indices: int32 [rows], of the output, the counter of the randomness; tokens_out: int32
    [rows], -2 where logits are not finite. Also keeps the token in state.last_token, and counts it in
    state.history where penalties are. A grammar's mask replaces `unstopped`. What the host knows saves
    launches: draws=False, all rows are greedy; filters=False, none has top-k or top-p.
    """
    mine = SamplingState(*(part[slots.long()] for part in state))
    scores = _penalised(logits.float(), mine)
    scores.masked_fill_(_forbidden(indices, masks, mine, logits.shape[1]), -math.inf)
    best, tokens = scores.max(-1)
    drawn = (mine.temperature > 0).nonzero()[:, 0]
    if draws and len(drawn):
        tokens[drawn] = _draw(scores[drawn], indices[drawn], SamplingState(*(part[drawn] for part in mine)))
    tokens_out.copy_(torch.where(torch.isfinite(best), tokens, _NOT_FINITE))
    state.last_token[slots.long()] = tokens_out.clamp(min=0)
    _count(tokens_out.clamp(min=0), slots.long(), mine, state.history)


def logprobs(
    logits: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    out: LogprobsOut,
    workspace: torch.Tensor,
) -> None:
    """Natural log-probabilities, before penalties and bans, of the chosen and of the k best tokens.

    logits: [sampled rows, vocab] as `sample` left them; rows: int32 [m], which of them; tokens: int32
    [sampled rows], what `sample` chose. k is out.top's width.
    """
    natural = logits[rows.long()].float().log_softmax(-1)
    out.chosen.copy_(natural.gather(1, tokens[rows.long()].long().clamp(min=0).unsqueeze(1))[:, 0])
    values, ids = natural.sort(dim=-1, descending=True, stable=True)
    count = out.top.shape[1]
    out.top.copy_(values[:, :count])
    out.top_ids.copy_(ids[:, :count])


def _norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    wide = x.float()
    return wide if weight is None else functional.rms_norm(wide, weight.shape, weight.float(), eps)


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _attended(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """[queries, heads, head_dim] over [context, kv_heads, head_dim]"""
    queries, heads, head_dim = query.shape
    context, kv_heads, _ = keys.shape
    grouped = query.float().view(queries, kv_heads, heads // kv_heads, head_dim)
    scores = torch.einsum("qhgd,chd->qhgc", grouped, keys.float()) * scale
    positions = torch.arange(context - queries, context, device=query.device)
    hidden = torch.arange(context, device=query.device) > positions.unsqueeze(1)  # [queries, context]
    weights = scores.masked_fill(hidden[:, None, None], -math.inf).softmax(-1)
    return torch.einsum("qhgc,chd->qhgd", weights, values.float()).reshape(query.shape)


def _penalised(logits: torch.Tensor, mine: SamplingState) -> torch.Tensor:
    repetition, presence, frequency = (
        part.unsqueeze(1) for part in (mine.repetition, mine.presence, mine.frequency)
    )
    active = _has_penalties(mine).unsqueeze(1)
    counts = mine.history.int() & _MOST_COUNTED
    scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
    part = torch.where(mine.history != 0, scaled, logits)
    return torch.where(active, part - presence * (counts > 0) - frequency * counts, logits)


def _has_penalties(mine: SamplingState) -> torch.Tensor:
    return (mine.repetition != 1) | (mine.presence != 0) | (mine.frequency != 0)


def _forbidden(
    indices: torch.Tensor, masks: GrammarMasks | None, mine: SamplingState, vocab: int
) -> torch.Tensor:
    stopped = ~_unpacked(mine.unstopped, vocab) & (indices < mine.min_tokens).unsqueeze(1)
    if masks is None:
        return stopped
    bits = _unpacked(masks.bits[masks.which.long().clamp(min=0)], vocab)
    return torch.where((masks.which >= 0).unsqueeze(1), ~bits, stopped)


def _unpacked(words: torch.Tensor, vocab: int) -> torch.Tensor:
    """[rows, words] -> [rows, vocab] bool"""
    bits = words.unsqueeze(-1) >> torch.arange(BITS, device=words.device, dtype=torch.int32)
    return (bits & 1).bool().flatten(1)[:, :vocab]


def _draw(logits: torch.Tensor, indices: torch.Tensor, mine: SamplingState) -> torch.Tensor:
    scores = (logits - logits.amax(-1, keepdim=True)) / mine.temperature.unsqueeze(1)
    scores = scores.nan_to_num(nan=0.0)  # the best is 0; 0 / 0, or a row that is not finite
    floor = torch.maximum(_filters_floor(scores, mine), mine.log_min_p)
    low, high = (mine.seed.long() & _WORD).unbind(1)
    return choose(scores, floor, Draw(low, high, indices.long()))


def _filters_floor(scores: torch.Tensor, mine: SamplingState) -> torch.Tensor:
    """The smallest score within top-k and, of what that left, top-p, [rows]; equal scores share a fate."""
    ordered = scores.sort(dim=-1, descending=True).values
    vocab = scores.shape[1]
    limited = (mine.top_k > 0) & (mine.top_k < vocab)
    kth = ordered.gather(1, (mine.top_k.long() - 1).clamp(0, vocab - 1).unsqueeze(1))
    floor = torch.where(limited.unsqueeze(1), kth, -math.inf)
    above = ordered.masked_fill(ordered < floor, -math.inf)
    mass = (above - above.logsumexp(-1, keepdim=True)).double().exp().cumsum(-1)
    within = (mass < mine.top_p.unsqueeze(1)).sum(-1, keepdim=True)
    last = torch.isfinite(above).sum(-1, keepdim=True) - 1
    nucleus = ordered.gather(1, torch.minimum(within, last))
    return torch.where((mine.top_p < 1).unsqueeze(1), nucleus, floor).squeeze(1)


def _count(tokens: torch.Tensor, slots: torch.Tensor, mine: SamplingState, history: torch.Tensor) -> None:
    active = _has_penalties(mine)
    slots, tokens = slots[active], tokens[active].long()
    before = history[slots, tokens]
    more = (before & _MOST_COUNTED) < _MOST_COUNTED
    history[slots, tokens] = before + more.to(before.dtype)
