"""The end of a request in its trailers, for tools that see only those.

    headrace-request-id     headrace-worker
    headrace-run            class=interactive, reason=asked, attempts=1, cached-response=0
    headrace-usage          prompt=128, cached=64, output=17
    server-timing           encode;dur=0.412, queue;dur=1.020, …       milliseconds, as W3C has them

Few and long ones: gRPC takes as long for one more as for a whole token.
"""

from __future__ import annotations

from headrace.v1 import router_pb2, types_pb2

_CLASSES = {
    number: name.removeprefix("LATENCY_CLASS_").lower() for name, number in types_pb2.LatencyClass.items()
}
_REASONS = {
    number: name.removeprefix("CLASS_REASON_").lower() for name, number in router_pb2.ClassReason.items()
}


def trailers(finished: router_pb2.Finished) -> tuple[tuple[str, str], ...]:
    """What the trailers say of a request that ended well."""
    return (
        ("headrace-request-id", finished.request_id),
        ("headrace-worker", finished.worker_id),
        (
            "headrace-run",
            f"class={_CLASSES[finished.latency_class]}, reason={_REASONS[finished.class_reason]}, "
            f"attempts={finished.attempts}, cached-response={int(finished.cached_response)}",
        ),
        ("headrace-usage", _usage(finished.usage)),
        ("server-timing", _server_timing(finished.timings)),
    )


def _usage(usage: types_pb2.Usage) -> str:
    return f"prompt={usage.prompt_tokens}, cached={usage.cached_tokens}, output={usage.output_tokens}"


def _server_timing(timings: types_pb2.Timings) -> str:
    return (
        f"encode;dur={timings.encode_us / 1e3:.3f}, queue;dur={timings.queue_us / 1e3:.3f}, "
        f"prefill;dur={timings.prefill_us / 1e3:.3f}, decode;dur={timings.decode_us / 1e3:.3f}, "
        f"first-token;dur={timings.first_token_us / 1e3:.3f}, total;dur={timings.total_us / 1e3:.3f}, "
        f"predicted-queue;dur={timings.predicted_queue_us / 1e3:.3f}, "
        f"predicted-first-token;dur={timings.predicted_first_token_us / 1e3:.3f}"
    )
