"""The end of a request as its caller reads it: Finished with usage and timings, or the error."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from headrace.v1 import router_pb2, session_pb2, types_pb2

from services.common import errors
from services.router.policy import log2_bucket
from services.router.policy.classify import ClassReason
from services.router.relay.order import WIRE_CLASS

if TYPE_CHECKING:
    from services.router.relay.flight import Flight

_MOST_US = 30 * 86_400_000_000
_REASONS = {
    ClassReason.ASKED: router_pb2.CLASS_REASON_ASKED,
    ClassReason.INFERRED: router_pb2.CLASS_REASON_INFERRED,
    ClassReason.CAPPED: router_pb2.CLASS_REASON_CAPPED,
    ClassReason.OVER_BUDGET: router_pb2.CLASS_REASON_OVER_BUDGET,
}


def finished(
    flight: Flight,
    reason: types_pb2.FinishReason,
    end: session_pb2.SequenceEnd | None,
    stop_string: str | None,
    stop_token_id: int | None,
) -> router_pb2.Finished:
    """What is said of a flight that ended well; `end` is the worker's word, where it came to that."""
    order = flight.order
    return router_pb2.Finished(
        request_id=order.request_id,
        model=order.model,
        finish_reason=reason,
        stop_string=stop_string,
        stop_token_id=stop_token_id,
        usage=types_pb2.Usage(
            prompt_tokens=len(order.prompt_ids),
            cached_tokens=flight.cached_tokens,
            output_tokens=len(flight.ids),
        ),
        timings=_timings(flight, end),
        latency_class=WIRE_CLASS[order.latency_class],
        shape=types_pb2.Shape(
            uncached_prompt_bucket=log2_bucket(len(order.prompt_ids) - flight.cached_tokens),
            expected_output_bucket=log2_bucket(order.expected_output),
        ),
        seed=order.sampling.seed,
        worker_id=flight.seat.worker_id if flight.seat else "",
        attempts=flight.attempt,
        asked_class=WIRE_CLASS[order.asked_class] if order.asked_class else None,
        class_reason=wire_reason(order.class_reason),
    )


def wire_reason(reason: ClassReason) -> router_pb2.ClassReason:
    """Why a request runs in its class, as the wire says it."""
    return _REASONS[reason]


def read_reason(reason: router_pb2.ClassReason) -> ClassReason:
    """The reverse of `wire_reason`; what is not known counts as inferred."""
    return next((each for each, wire in _REASONS.items() if wire == reason), ClassReason.INFERRED)


def _timings(flight: Flight, end: session_pb2.SequenceEnd | None) -> types_pb2.Timings:
    """The worker's own times where it told them, else what was seen from here."""
    arrival_s = flight.order.arrival_s
    in_worker_us = _told_us(end.queue_us) if end else 0
    first_s = flight.first_token_s or flight.submitted_s
    seen_prefill_us = max(0, _us(first_s - flight.submitted_s) - in_worker_us)
    last_s = max(flight.last_token_s, first_s)
    predicted = flight.predicted
    return types_pb2.Timings(
        encode_us=_us(flight.order.encode_s),
        queue_us=_us(flight.queue_s) + in_worker_us,
        prefill_us=_told_us(end.prefill_us) if end else seen_prefill_us,
        decode_us=_told_us(end.decode_us) if end and flight.attempt == 1 else _us(last_s - first_s),
        first_token_us=_us(first_s - arrival_s),
        total_us=_us(flight.last_update_s - arrival_s),
        predicted_queue_us=_known_us(predicted.wait_s) if predicted else None,
        predicted_first_token_us=_known_us(predicted.ttft_s) if predicted else None,
    )


def failure(
    end: session_pb2.SequenceEnd, grammar: types_pb2.Grammar | None, *, begun: bool
) -> errors.HeadraceError:
    """The error for a sequence that its worker ended badly; `begun`: tokens had been made."""
    if end.reason == session_pb2.END_REASON_DEADLINE:
        return errors.DeadlineExceeded("the deadline passed while the request ran")
    if end.reason == session_pb2.END_REASON_CLAIMED:
        return errors.Aborted("another call took this stream up", reason="TAKEN_OVER")
    if end.reason != session_pb2.END_REASON_GRAMMAR:
        return errors.Internal(end.message or "the engine failed on this request", reason="ENGINE_FAULT")
    message = end.message or "the grammar cannot be used"
    if begun:
        return errors.FailedPrecondition(message, reason="CONSTRAINT_FAILED")
    kind = grammar.WhichOneof("kind") if grammar else None
    field = f"grammar.{kind}" if kind else "grammar"
    return errors.InvalidArgument(errors.FieldViolation(field, message))


def _told_us(microseconds: int) -> int:
    """A worker's word, which may be absurd."""
    return min(microseconds, _MOST_US)


def _known_us(seconds: float) -> int | None:
    return _us(seconds) if isfinite(seconds) else None


def _us(seconds: float) -> int:
    return max(0, int(seconds * 1_000_000))
