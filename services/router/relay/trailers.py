"""Timings in the trailers, for tools that see only those."""

from __future__ import annotations

from headrace.v1 import router_pb2, types_pb2


def trailers(finished: router_pb2.Finished) -> tuple[tuple[str, str], ...]:
    """What the trailers say of a request that ended well."""
    timings = finished.timings
    latency_class = types_pb2.LatencyClass.Name(finished.latency_class).removeprefix("LATENCY_CLASS_")
    reason = router_pb2.ClassReason.Name(finished.class_reason).removeprefix("CLASS_REASON_")
    return (
        ("headrace-request-id", finished.request_id),
        ("headrace-class", latency_class.lower()),
        ("headrace-class-reason", reason.lower()),
        ("headrace-worker", finished.worker_id),
        ("headrace-attempts", str(finished.attempts)),
        ("headrace-cached-response", str(int(finished.cached_response))),
        ("headrace-prompt-tokens", str(finished.usage.prompt_tokens)),
        ("headrace-cached-tokens", str(finished.usage.cached_tokens)),
        ("headrace-output-tokens", str(finished.usage.output_tokens)),
        ("headrace-encode-us", str(timings.encode_us)),
        ("headrace-queue-us", str(timings.queue_us)),
        ("headrace-prefill-us", str(timings.prefill_us)),
        ("headrace-decode-us", str(timings.decode_us)),
        ("headrace-first-token-us", str(timings.first_token_us)),
        ("headrace-total-us", str(timings.total_us)),
        ("headrace-predicted-queue-us", str(timings.predicted_queue_us)),
        ("headrace-predicted-first-token-us", str(timings.predicted_first_token_us)),
    )
