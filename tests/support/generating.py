"""Calling Generate in tests: whole streams, checked as they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.v1 import router_pb2, types_pb2


@dataclass
class Stream:
    """What one stream delivered."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    messages: int = 0
    finished: router_pb2.Finished | None = None

    def take(self, reply: router_pb2.GenerateResponse) -> None:
        """Adds a message; fails on a gap, a repetition, or anything after the end."""
        assert self.finished is None, "a message after Finished"
        self.messages += 1
        if reply.WhichOneof("event") == "finished":
            self.finished = reply.finished
            return
        if reply.delta.token_ids:
            assert reply.delta.index == len(self.token_ids), "tokens are missing or repeated"
        self.token_ids.extend(reply.delta.token_ids)
        self.text += reply.delta.text


async def generate(stub: Any, request: router_pb2.GenerateRequest, **call: Any) -> Stream:
    """The whole stream of a request."""
    stream = Stream()
    replies = stub.Generate(request, **call)
    try:
        async for reply in replies:
            stream.take(reply)
    finally:
        replies.cancel()
    assert stream.finished is not None, "no Finished"
    return stream


def request(
    text: str | None = None,
    *,
    ids: Sequence[int] | None = None,
    chat: str | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    **fields: Any,
) -> router_pb2.GenerateRequest:
    """A request for one text, prompt of ids or chat turn; `fields` are fields of GenerateRequest."""
    made = router_pb2.GenerateRequest(**fields)
    if text is not None:
        made.text = text
    if ids is not None:
        made.token_ids.ids.extend(ids)
    if chat is not None:
        made.chat.messages.append(types_pb2.ChatMessage(role="user", content=chat))
    if temperature is not None:
        made.sampling.temperature = temperature
    if seed is not None:
        made.sampling.seed = seed
    return made
