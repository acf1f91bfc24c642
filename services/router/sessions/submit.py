"""An order as the wire's Submit; ids of prompt and output that are too many for a frame follow in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.v1 import session_pb2

from services.router.policy import Waiting
from services.router.relay.flight import Flight
from services.router.relay.order import WIRE_CLASS, Order
from services.router.relay.outlet import AT_ONCE
from services.router.sessions.outbox import Command
from services.router.sessions.served import service_tag

PIECE_IDS = 8192
"""At most 5 bytes an id: a piece stays under 64 KiB whatever the ids are."""
SMALL_BYTES = 8 << 10


def commands(flight: Flight, slot: int, numerics: bytes, now: float) -> list[Command]:
    """What starts the flight's current attempt in `slot`."""
    first = _submit(flight, slot, numerics, now)
    had = len(first.prompt_ids)
    pieces = _pieces(flight, slot, flight.order.prompt_ids, had, 0)
    if not first.delivered_ids:
        pieces += _pieces(flight, slot, flight.ids, 0, len(flight.order.prompt_ids))
    return [first, *pieces]


def adoption(flight: Flight, slot: int, handle: int) -> session_pb2.Adopt:
    """What goes on with a claimed request as the flight's current attempt."""
    return session_pb2.Adopt(
        handle=handle,
        slot=slot,
        attempt=flight.attempt,
        next_index=len(flight.ids),
        claim_key=flight.claimable.key,
        merge=_merge(flight),
    )


def resumption(flight: Flight, slot: int, handle: int) -> session_pb2.ResumeRequest:
    """What goes on, in another session, with what the worker still holds."""
    return session_pb2.ResumeRequest(
        slot=slot, attempt=flight.attempt, next_index=len(flight.ids), handle=handle
    )


def demand(waiting: Waiting) -> session_pb2.Demand:
    """What would be submitted if there were credit."""
    return session_pb2.Demand(
        prefill_tokens=waiting.prefill_tokens,
        requests=waiting.requests,
        foreground_prefill_tokens=waiting.foreground_prefill_tokens,
        foreground_requests=waiting.foreground_requests,
    )


def _submit(flight: Flight, slot: int, numerics: bytes, now: float) -> session_pb2.Submit:
    order = flight.order
    room = _ids_in_submit(flight)
    return session_pb2.Submit(
        slot=slot,
        request_id=order.request_id,
        attempt=flight.attempt,
        next_index=len(flight.ids),
        prompt_tokens=len(order.prompt_ids),
        prompt_ids=order.prompt_ids[:room],
        delivered_ids=flight.ids if len(order.prompt_ids) + len(flight.ids) <= room else (),
        sampling=order.sampling,
        max_tokens=order.max_tokens,
        grammar=order.grammar,
        latency_class=WIRE_CLASS[order.latency_class],
        remaining_ms=_remaining_ms(order, now),
        waited_ms=_ms(now - order.arrival_s),
        ttft_target_ms=_target_ms(order.ttft_target_s),
        tpot_target_ms=_target_ms(order.tpot_target_s),
        expected_output_tokens=order.expected_output,
        kv_key=order.scope.kv_key(numerics) if order.scope else b"",
        tenant_tag=service_tag(order.tenant_tag, order.latency_class),
        traceparent=order.traceparent,
        claim_key=flight.claimable.key,
        router_state=flight.claimable.state,
        merge=_merge(flight),
    )


def _merge(flight: Flight) -> session_pb2.Merge | None:
    merging = flight.merging
    if merging is AT_ONCE:
        return None
    return session_pb2.Merge(tokens=merging.tokens, wait_ms=_ms(merging.delay_s))


def _ids_in_submit(flight: Flight) -> int:
    """None where the rest of the message is large: they all come in pieces then."""
    grammar = flight.order.grammar
    rest = len(flight.claimable.state) + (grammar.ByteSize() if grammar is not None else 0)
    return PIECE_IDS if rest <= SMALL_BYTES else 0


def _pieces(flight: Flight, slot: int, ids: Sequence[int], begin: int, before: int) -> list[Command]:
    """Of `ids` from `begin` on, with so many ids before them."""
    return [
        session_pb2.PromptPiece(
            slot=slot, attempt=flight.attempt, offset=before + offset, ids=ids[offset : offset + PIECE_IDS]
        )
        for offset in range(begin, len(ids), PIECE_IDS)
    ]


def _remaining_ms(order: Order, now: float) -> int | None:
    return None if order.deadline_s is None else max(1, _ms(order.deadline_s - now))


def _target_ms(target_s: float | None) -> int | None:
    return None if target_s is None else _ms(target_s)


def _ms(seconds: float) -> int:
    return max(0, int(seconds * 1000))
