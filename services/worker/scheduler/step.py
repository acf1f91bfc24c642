"""What the scheduler asks of a runner in one step, and what it gets back: arrays, no objects per token.

n is the number of sequences in the step. A sequence lives in a *slot* of the runner from the step with its
`SlotInit` until the slot is initialised again; the runner keeps block table, last token and sampling state by
slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.worker.scheduler.request import Ids, Sampling

LAST_SAMPLED = (
    -1
)  # in Step.tokens: the token that this slot sampled in the step before, not yet seen by the host
NOT_SAMPLED = -1  # in Sampled.tokens: the row was not asked to sample
NOT_FINITE = -2  # in Sampled.tokens: the row's logits were not finite; that request alone fails

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSpec:
    """What a runner can hold. A slot engine (ONNX Runtime, TensorRT) has `block_size == max_len`."""

    block_size: int  # tokens
    num_blocks: int
    max_seqs: int  # slots
    max_len: int  # tokens of one sequence, prompt and output together


class Capabilities(NamedTuple):
    """What an engine can promise; the worker tells routers in its Hello."""

    run_ahead: int = 0  # steps that may be launched before the result of an earlier one is known: 0 or 1
    prefix_reuse: bool = True  # blocks of one sequence can be read by another
    chunked_prefill: bool = True  # a prompt may be computed in several steps
    deterministic: bool = False  # ids do not depend on what runs beside: who resumes continues bit for bit
    logprobs: bool = True
    max_logprobs: int = 20
    penalties: bool = True
    grammar: bool = False  # output can be held to a grammar


class StepCost(NamedTuple):
    """The five features of the step-time model; each is linear in seconds (research: policy A2)."""

    steps: float  # 1
    tokens: float  # input tokens
    attention: float  # sum over prefill chunks of take * (done + take / 2)
    context: float  # sum over decodes of tokens read
    sequences: float  # decodes


@dataclass(frozen=True, slots=True, eq=False)
class SlotInit:
    """A sequence enters a slot: everything a runner must know of it that does not change by step."""

    slot: int
    sampling: Sampling
    prompt: Ids
    outputs: Ids  # output tokens known so far; penalties count them
    stop_ids: Ids  # ids that min_tokens forbids, end-of-sequence ids included


class Constrained(NamedTuple):
    """A row that chooses its token under a grammar."""

    row: int
    handle: int  # whose grammar it is


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """What grammars let rows choose."""

    rows: Int32  # [m] rows of the step
    bits: UInt8  # [m, at least vocab / 8]; token t may be chosen: bit t & 7 of byte t >> 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One forward pass. Rows are ragged: row i owns `query_lens[i]` of `tokens`, in order."""

    number: int  # 1, 2, 3, ...: steps run in this order
    slots: Int32  # [n]
    query_lens: Int32  # [n] tokens to compute now
    context_lens: Int32  # [n] tokens of the sequence whose KV is there already
    tokens: Int32  # [sum(query_lens)] ids, or LAST_SAMPLED
    samples: Bool  # [n] choose a token from the logits of the row's last input
    output_indices: Int64  # [n] the output index of the token to choose: the counter of its randomness
    block_offsets: Int32  # [n + 1]
    block_ids: (
        Int32  # blocks to append to the slots' tables, row i: block_ids[block_offsets[i]:block_offsets[i+1]]
    )
    inits: tuple[SlotInit, ...]  # slots that start empty in this step
    cost: StepCost
    constrained: tuple[Constrained, ...] = ()
    masks: Masks | None = None  # of all `constrained` rows; whoever launches the step puts them in


@dataclass(frozen=True, slots=True, eq=False)
class Logprobs:
    """Natural logarithms of the model's own distribution, before penalties and temperature."""

    rows: Int32  # [m] rows of the step that asked
    chosen: Float32  # [m]
    top_ids: Int32  # [m, k] best first, k the largest number any row asked for
    top: Float32  # [m, k]


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """What a step chose."""

    tokens: Int32  # [n] ids, NOT_SAMPLED or NOT_FINITE
    logprobs: Logprobs | None = None
