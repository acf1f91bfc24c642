"""From request to sequence: what is refused, and what is known of a request before its first step."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from services.worker.scheduler.blocks import BlockPool
from services.worker.scheduler.budget import StepModel
from services.worker.scheduler.events import Rejected, RejectReason
from services.worker.scheduler.policy import SchedulerSettings, is_lengthy, place_of, tpot_target_s
from services.worker.scheduler.request import Ids, Request
from services.worker.scheduler.sequence import Chain, Sequence
from services.worker.scheduler.step import Capabilities, KVSpec, StepCost

_MAX_KEY_BYTES = 64


class ModelFacts(NamedTuple):
    """What a scheduler must know of a model."""

    vocab_size: int
    eos_ids: tuple[int, ...]
    numerics_id: bytes


class Intake:
    """Checks requests and makes sequences of them."""

    def __init__(
        self, spec: KVSpec, settings: SchedulerSettings, facts: ModelFacts, capabilities: Capabilities
    ) -> None:
        self._settings = settings
        self._facts = facts
        self._capabilities = capabilities
        self._block_size = spec.block_size
        self._max_len = min(spec.max_len, spec.num_blocks * spec.block_size)

    def fault(self, request: Request) -> Rejected | None:
        """Why this request can never run here; None when it can."""
        if len(request.prompt) >= self._max_len:
            text = f"the prompt has {len(request.prompt)} tokens; the context ends at {self._max_len}"
            return Rejected(request.handle, RejectReason.TOO_LONG, text)
        message = next(iter(self._faults(request)), None)
        return None if message is None else Rejected(request.handle, RejectReason.INVALID, message)

    def sequence(
        self, request: Request, model: StepModel, pool: BlockPool, had_s: float, now: float
    ) -> Sequence:
        """The sequence of a request without fault that comes now, ready to wait."""
        chain = Chain(
            request, self._facts.numerics_id, self._block_size, reuse=self._capabilities.prefix_reuse
        )
        sequence = Sequence(
            request,
            chain,
            max_outputs=min(request.max_tokens, self._max_len - len(request.prompt)),
            stop_ids=self._stop_ids(request),
            tpot_s=tpot_target_s(request, self._settings),
        )
        found = len(pool.find(sequence.reusable_links())) * self._block_size
        sequence.backlog = sequence.length - found
        cost = StepCost(1.0, sequence.backlog, sequence.backlog * (found + sequence.backlog / 2.0), 0.0, 0.0)
        prefill_s = model.predict(cost)
        sequence.stand(place_of(request, self._settings, prefill_s, had_s, now))
        sequence.lengthy = is_lengthy(request, self._settings, prefill_s)
        return sequence

    def _stop_ids(self, request: Request) -> frozenset[int]:
        """Ids that no vocabulary has never come."""
        eos = () if request.sampling.ignore_eos else self._facts.eos_ids
        named = (*request.sampling.stop_token_ids, *eos)
        return _shared(frozenset(token for token in named if 0 <= token < self._facts.vocab_size))

    def _faults(self, request: Request) -> list[str]:
        sampling, vocab = request.sampling, self._facts.vocab_size
        checks = (
            (len(request.prompt) > 0, "the prompt is empty"),
            (request.grammar is None or self._capabilities.grammar, "this engine has no grammars"),
            (request.max_tokens > 0, f"max_tokens is out of range: {request.max_tokens}"),
            (_below(request.prompt, vocab), f"the prompt has ids outside the vocabulary of {vocab}"),
            (_below(request.delivered, vocab), f"delivered has ids outside the vocabulary of {vocab}"),
            (
                (sampling.logprobs or 0) <= self._capabilities.max_logprobs,
                f"logprobs is out of range: {sampling.logprobs}",
            ),
            (
                max(len(request.kv_key), len(request.public_kv_key)) <= _MAX_KEY_BYTES,
                "a KV key is longer than 64 bytes",
            ),
            (
                request.public_prefix_tokens % self._block_size == 0,
                f"public_prefix_tokens is not a multiple of {self._block_size}",
            ),
        )
        faults = [message for fine, message in checks if not fine]
        field_fault = sampling.fault()
        return faults if field_fault is None else [*faults, field_fault]


@lru_cache(1024)
def _shared(ids: frozenset[int]) -> frozenset[int]:
    """One set for all requests with the same ids: each step looks into that of every sequence."""
    return ids


def _below(ids: Ids, limit: int) -> bool:
    return len(ids) == 0 or bool(ids.view(np.uint32).max() < limit)  # a negative one is very large
