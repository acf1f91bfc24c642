"""From the wire's Submit to the engine's Request: what cannot run here is said before the engine sees it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from headrace.v1 import session_pb2, types_pb2

from services.worker.engine.base import EngineDescription
from services.worker.scheduler.request import Grammar, Ids, LatencyClass, Merge, Request, Sampling
from services.worker.session.prompts import Arrival

KEY_BYTES = 32
TAG_BYTES = 16
MOST_MERGED = 64
MOST_KEPT_S = 0.25
"""What is kept is lost with its worker, and computed again elsewhere."""
_MOST_MS = 10**12  # 30 years: absurd times are cut, not refused
_CLASSES = {each.value: each for each in LatencyClass}


class Refusal(NamedTuple):
    """Why a submission is not taken: `malformed` ones are nobody's, others may run on another worker."""

    message: str
    malformed: bool


def refusal(submit: session_pb2.Submit, engine: EngineDescription) -> Refusal | None:
    """What is wrong with a submission, seen before its prompt is complete; None when nothing is."""
    if (message := _fault(submit)) is not None:
        return Refusal(message, malformed=True)
    if (message := _unsupported(submit, engine)) is not None:
        return Refusal(message, malformed=False)
    return None


def to_request(arrival: Arrival, session: int) -> Request:
    """The engine's request of a complete, unrefused submission. Its times begin at the arrival."""
    submit, at_s = arrival.submit, arrival.at_s
    return Request(
        handle=arrival.job.handle,
        prompt=to_ids(submit.prompt_ids),
        delivered=to_ids(submit.delivered_ids),
        max_tokens=min(submit.max_tokens, 2**31 - 1),
        sampling=_sampling(submit.sampling),
        grammar=_grammar(submit.grammar),
        latency_class=_CLASSES.get(submit.latency_class, LatencyClass.STANDARD),
        arrival_s=at_s - arrival.job.waited_s,
        deadline_s=at_s + min(submit.remaining_ms, _MOST_MS) / 1000
        if submit.HasField("remaining_ms")
        else None,
        ttft_target_s=submit.ttft_target_ms / 1000 if submit.HasField("ttft_target_ms") else None,
        tpot_target_s=submit.tpot_target_ms / 1000 if submit.HasField("tpot_target_ms") else None,
        expected_output_tokens=submit.expected_output_tokens or None,
        kv_key=submit.kv_key,
        public_kv_key=submit.public_kv_key,
        public_prefix_tokens=submit.public_prefix_tokens,
        tenant=submit.tenant_tag,
        session=session,
        merge=merge_of(submit.merge, described=submit.sampling.HasField("logprobs")),
    )


def merge_of(merge: session_pb2.Merge, *, described: bool) -> Merge | None:
    """How tokens go together; those with log-probabilities never wait, and none for long."""
    tokens, wait_s = min(merge.tokens, MOST_MERGED), min(merge.wait_ms / 1000, MOST_KEPT_S)
    return Merge(tokens, wait_s) if tokens > 1 and wait_s > 0 and not described else None


def to_ids(ids: Sequence[int]) -> Ids:
    """Wire ids as the engine wants them; one beyond 2^31 becomes negative, which the engine refuses.

    By way of a list and an array: numpy asks protobuf for one id after the other, which takes far longer.
    """
    return np.frombuffer(array("I", ids[:]), np.uint32).astype(np.int32)


def _fault(submit: session_pb2.Submit) -> str | None:
    rules = (
        (bool(submit.request_id) and len(submit.request_id) <= 256, "request_id is empty or too long"),
        (submit.prompt_tokens >= max(1, len(submit.prompt_ids)), "prompt_tokens is less than what was sent"),
        (submit.next_index >= len(submit.delivered_ids), "next_index is less than the delivered_ids sent"),
        (submit.max_tokens > 0, "max_tokens is 0"),
        (len(submit.kv_key) in (0, KEY_BYTES), "kv_key has neither 0 nor 32 bytes"),
        (len(submit.public_kv_key) in (0, KEY_BYTES), "public_kv_key has neither 0 nor 32 bytes"),
        (len(submit.tenant_tag) in (0, TAG_BYTES), "tenant_tag has neither 0 nor 16 bytes"),
    )
    return next((message for fine, message in rules if not fine), None)


def _unsupported(submit: session_pb2.Submit, engine: EngineDescription) -> str | None:
    able, sampling = engine.capabilities, submit.sampling
    longest = min(engine.spec.max_len, engine.spec.num_blocks * engine.spec.block_size)
    rules = (
        (submit.prompt_tokens < longest, f"the prompt is too long: the context has {longest} tokens"),
        (submit.next_index <= longest, f"the output is too long: the context has {longest} tokens"),
        (able.grammar or submit.grammar.WhichOneof("kind") is None, "this engine has no grammars"),
        (able.logprobs or not sampling.HasField("logprobs"), "this engine has no log-probabilities"),
        (sampling.logprobs <= able.max_logprobs, f"at most {able.max_logprobs} log-probabilities"),
        (able.penalties or not _sampling(sampling).penalised, "this engine has no penalties"),
    )
    return next((message for fine, message in rules if not fine), None)


def _grammar(grammar: types_pb2.Grammar) -> Grammar | None:
    kind = grammar.WhichOneof("kind")
    return None if kind is None else Grammar(kind, getattr(grammar, kind))


def _sampling(params: types_pb2.SamplingParams) -> Sampling:
    """Unset fields take the wire contract's defaults, which are those of Sampling."""
    chosen = {field.name: value for field, value in params.ListFields() if field.name != "stop_token_ids"}
    return Sampling(**chosen, stop_token_ids=tuple(params.stop_token_ids))
