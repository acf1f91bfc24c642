"""How the engine's terminal events are told on the wire."""

from __future__ import annotations

from headrace.v1 import session_pb2, types_pb2

from services.worker.scheduler.events import Finished, Rejected, RejectReason
from services.worker.session.outgoing import MESSAGE_CHARS

RETURNED_FOR = {
    RejectReason.TOO_LONG: session_pb2.RETURN_REASON_UNSUPPORTED,
    RejectReason.DRAINING: session_pb2.RETURN_REASON_DRAINING,
}
"""Refusals of the engine after which another worker may take it; the rest are the request's own errors."""


def refused(rejected: Rejected) -> session_pb2.SequenceEnd:
    """The end of a request that no engine would take."""
    message = rejected.message[:MESSAGE_CHARS]
    return session_pb2.SequenceEnd(reason=session_pb2.END_REASON_ERROR, message=message)


def ending(finished: Finished, waited_s: float) -> session_pb2.SequenceEnd:
    """What its router is told; `waited_s`: of its queueing, elsewhere."""
    usage, timings = finished.usage, finished.timings
    return session_pb2.SequenceEnd(
        reason=session_pb2.EndReason.Name(finished.reason),
        stop_token_id=finished.stop_token_id,
        usage=types_pb2.Usage(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
        ),
        queue_us=max(0, int((timings.queue_s - waited_s) * 1e6)),
        prefill_us=int(timings.prefill_s * 1e6),
        decode_us=int(timings.decode_s * 1e6),
        message=finished.message[:MESSAGE_CHARS],
    )
