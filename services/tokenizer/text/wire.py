"""What the pool and its processes say to each other over a socket pair: frames with a length first.

To a process: pickled requests, since it trusts the pool. From a process: JSON and arrays of ids, never
pickle, since what runs there is a model's template.
"""

from __future__ import annotations

import json
import pickle
import struct
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from services.tokenizer.text import errors
from services.tokenizer.text.encoder import EncoderStatistics
from services.tokenizer.text.errors import TextError
from services.tokenizer.text.items import Item, Outcome

LENGTH = struct.Struct("<Q")
_HEADER = struct.Struct("<I")
_KINDS: dict[str, type[TextError]] = {
    kind.__name__: kind for kind in (TextError, errors.InvalidText, errors.TemplateFailed, errors.TooLong)
}


class Request(NamedTuple):
    """Items to encode, and the seconds after which the process ends itself if the pool has not."""

    items: tuple[Item, ...]
    limit_s: float


class Reply(NamedTuple):
    """One outcome an item, and the process's counts. Without outcomes: the process is ready."""

    outcomes: list[Outcome]
    statistics: EncoderStatistics


class Refusal(NamedTuple):
    """The process cannot start, and why."""

    reason: str


def pack_request(request: object) -> bytes:
    """A frame for a process."""
    body = pickle.dumps(request, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(body)) + body


def pack_reply(reply: Reply | Refusal) -> bytes:
    """A frame for the pool."""
    if isinstance(reply, Refusal):
        body = _with_header({"refusal": reply.reason}, b"")
    else:
        described = [_describe(outcome) for outcome in reply.outcomes]
        header = {"outcomes": described, "statistics": reply.statistics._asdict()}
        ids = b"".join(array("I", each).tobytes() for each in reply.outcomes if isinstance(each, list))
        body = _with_header(header, ids)
    return LENGTH.pack(len(body)) + body


def unpack_reply(body: bytes) -> Reply | Refusal:
    """The reply in a frame.

    Raises:
        ValueError, KeyError, TypeError, struct.error: it is none.
    """
    (size,) = _HEADER.unpack_from(body)
    header = json.loads(body[_HEADER.size : _HEADER.size + size])
    if "refusal" in header:
        return Refusal(str(header["refusal"]))
    ids = array("I")
    ids.frombytes(body[_HEADER.size + size :])
    return Reply(_outcomes(header["outcomes"], ids), EncoderStatistics(**header["statistics"]))


def _with_header(header: Mapping[str, object], rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return _HEADER.pack(len(text)) + text + rest


def _describe(outcome: Outcome) -> dict[str, object]:
    if isinstance(outcome, list):
        return {"ids": len(outcome)}
    return {"error": type(outcome).__name__, "message": str(outcome)}


def _outcomes(described: Sequence[dict[str, object]], ids: array[int]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    start = 0
    for each in described:
        if "error" in each:
            outcomes.append(_KINDS.get(str(each["error"]), TextError)(str(each["message"])))
            continue
        count = int(str(each["ids"]))
        outcomes.append(ids[start : start + count].tolist())
        start += count
    return outcomes
