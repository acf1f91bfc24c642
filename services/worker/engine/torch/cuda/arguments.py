"""What kernels read about a batch: tensors on the device, so that a captured launch serves every batch.

A bucket fixes all shapes. Rows and tokens beyond the batch are padding: padded rows name the *scratch slot*,
the last one of every per-slot tensor, whose block table points to the scratch block, the last one of a pool.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

BITS = 32  # tokens in a word of a mask


class AttentionRows(NamedTuple):
    """The sequences of a step. A row without queries does nothing; tokens of no row are left unwritten."""

    slots: torch.Tensor  # int32 [rows]
    starts: torch.Tensor  # int32 [rows + 1], first token of each row; they are consecutive
    contexts: torch.Tensor  # int32 [rows], KV tokens to read, the row's own queries included
    max_queries: int  # of any row in this bucket; 1: decodes only


class GrammarMasks(NamedTuple):
    """What grammars let rows choose; token t may be chosen: bit t & 31 of word t >> 5."""

    which: torch.Tensor  # int32 [rows], row of `bits`; -1: the row is free
    bits: torch.Tensor  # int32 [masks, words]


class SamplingState(NamedTuple):
    """How each slot chooses, [max_seqs + 1] each. The scratch slot is greedy without penalties.

    A temperature of 0 is greedy: seed and filters are then without effect.
    """

    temperature: torch.Tensor  # fp32
    top_k: torch.Tensor  # int32; 0: no limit
    top_p: torch.Tensor  # fp64, in (0, 1]; 1: no limit
    log_min_p: (
        torch.Tensor
    )  # fp32, the logarithm of max(min_p, 1e-45): taken on the host, so the same everywhere
    repetition: torch.Tensor  # fp32, at least 1e-30; 1: none
    presence: torch.Tensor  # fp32
    frequency: torch.Tensor  # fp32
    seed: torch.Tensor  # int32 [max_seqs + 1, 2], the bits of the seed's low and high word
    min_tokens: torch.Tensor  # int32; below this output index only tokens of `unstopped` may be chosen
    unstopped: (
        torch.Tensor
    )  # int32 [max_seqs + 1, words], as bits of a mask: all but stop ids; read if min_tokens
    history: torch.Tensor  # int16 [max_seqs + 1, vocab], times in the output in 15 bits, sign: in the prompt;
    # read and written only where penalties are
    last_token: torch.Tensor  # int32, the token chosen last, 0 where logits were not finite


class LogprobsOut(NamedTuple):
    """Natural log-probabilities of m rows, best first; of equal ones the smaller id first."""

    chosen: torch.Tensor  # fp32 [m]
    top: torch.Tensor  # fp32 [m, k]
    top_ids: torch.Tensor  # int32 [m, k]
