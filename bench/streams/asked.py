"""What is asked for, and what the answer is when nothing disturbs it.

Simulated engines with one seed say the same whatever their steps cost, so a worker whose steps take no time
tells all answers in a moment, and is gone before anything is measured.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from headrace.v1 import router_pb2, types_pb2

if TYPE_CHECKING:
    from headrace.v1.router_pb2_grpc import RouterServiceAsyncStub

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Asked:
    """A request and its undisturbed answer."""

    request: router_pb2.GenerateRequest
    ids: list[int]
    text: str


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Which requests: so many different ones, half greedy, half sampled, some with shared beginnings."""

    requests: int = 32
    prompt_tokens: tuple[int, int] = (32, 192)
    tokens: tuple[int, int] = (64, 256)
    tokens_a_message: int = 1
    seed: int = 1

    def draw(self, ids: Sequence[int]) -> list[router_pb2.GenerateRequest]:
        """The requests; prompts are made of these ids."""
        choose = random.Random(self.seed)
        shared = choose.choices(ids, k=self.prompt_tokens[1])
        return [self._one(number, ids, shared, choose) for number in range(self.requests)]

    def _one(
        self, number: int, ids: Sequence[int], shared: list[int], choose: random.Random
    ) -> router_pb2.GenerateRequest:
        length = choose.randint(*self.prompt_tokens)
        own = choose.choices(ids, k=length)
        prompt = [*shared[: length // 2], *own[length // 2 :]] if number % 4 == 0 else own
        sampling = types_pb2.SamplingParams(ignore_eos=True)
        if number % 2:
            sampling.temperature, sampling.seed = 0.9, choose.getrandbits(32)
        return router_pb2.GenerateRequest(
            token_ids=types_pb2.TokenIds(ids=prompt),
            max_tokens=choose.randint(*self.tokens),
            sampling=sampling,
            latency_class=types_pb2.LATENCY_CLASS_INTERACTIVE,
            flush=_flush(self.tokens_a_message),
        )


def _flush(tokens: int) -> router_pb2.FlushPolicy:
    """Every token at once, or so many together however long they take."""
    return router_pb2.FlushPolicy(max_delay=Duration(seconds=10 * (tokens > 1)), max_tokens=tokens)


async def undisturbed(
    stub: RouterServiceAsyncStub, requests: Sequence[router_pb2.GenerateRequest]
) -> list[Asked]:
    """All of them with their answers. Raises AioRpcError."""
    return list(await asyncio.gather(*(_answered(stub, each) for each in requests)))


async def _answered(stub: RouterServiceAsyncStub, request: router_pb2.GenerateRequest) -> Asked:
    answer = await stub.GenerateUnary(request, timeout=TIMEOUT_S)
    assert len(answer.token_ids) == request.max_tokens
    return Asked(request, list(answer.token_ids), answer.text)
