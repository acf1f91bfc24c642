"""Requests in flight without a router around them."""

from __future__ import annotations

from array import array

from headrace.v1 import session_pb2, types_pb2

from services.common.text import TokenTable
from services.router.policy import LatencyClass
from services.router.relay.attempt import Seat
from services.router.relay.flight import Flight
from services.router.relay.order import Order
from services.router.relay.outlet import Flush, Outlet, Patience
from services.router.relay.text import TextReader
from tests.support.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TABLE = TokenTable(TOKENIZER.to_str().encode())
IDS = TOKENIZER.encode("The router sends each request to the worker. 日本語 and 🎡, once each.").ids
TEXT = TOKENIZER.decode(IDS)
LENGTH = session_pb2.END_REASON_LENGTH


def order(**more: object) -> Order:
    """An order; `more` replaces its fields."""
    values = {
        "number": 1,
        "request_id": "r",
        "tenant": "t",
        "tenant_tag": b"",
        "model": "m",
        "prompt_ids": array("I", [1, 2, 3]),
        "max_tokens": 1000,
        "sampling": types_pb2.SamplingParams(seed=9),
        "grammar": None,
        "stops": (),
        "latency_class": LatencyClass.INTERACTIVE,
        "arrival_s": 0.0,
        "deadline_s": None,
        "ttft_target_s": None,
        "tpot_target_s": None,
        "expected_output": 10,
        "scope": None,
        "labels": frozenset(),
        "capabilities": frozenset(),
        "end_ids": frozenset({2}),
        "encode_s": 0.001,
        "traceparent": "",
    }
    return Order(**(values | more))  # type: ignore[arg-type]


def flight(patience: Patience | None = None, **more: object) -> Flight:
    """A flight of such an order, for a patient client."""
    it = order(**more)
    outlet = Outlet(Flush(0.0, 1), patience or Patience(1 << 30, 1e9))
    return Flight(it, TextReader(TABLE, it.stops, it.sampling.min_tokens), outlet)


def seated(it: Flight, worker: str = "w") -> Flight:
    """The flight on a worker."""
    it.take_seat(Seat(worker, 1, b"n"), 1.0)
    return it


def news(
    first: int, ids: list[int], ending: session_pb2.EndReason | None = None, **more: object
) -> session_pb2.SequenceUpdate:
    """News of a sequence, without slot and attempt."""
    message = session_pb2.SequenceUpdate(first_index=first, token_ids=ids)
    if ending is not None:
        message.end.CopyFrom(session_pb2.SequenceEnd(reason=ending, **more))  # type: ignore[arg-type]
    return message
