"""Which texts share a call of the tokenizer service, and that none fails or waits for another's sake."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from headrace.v1 import tokenizer_pb2

from services.common import errors
from services.router.encode_calls import BATCH_BYTES, SHORT_BYTES, WAIT_S, EncodeCalls, Encoded, Lane
from tests.support.waiting import eventually

OURS, THEIRS = Lane("m", b"s", b"ours"), Lane("m", b"s", b"theirs")
LONG_S = 60.0


class Service:
    """Answers each call when it is told to; the ids of a text are its length."""

    def __init__(self) -> None:
        self.asked: list[tokenizer_pb2.EncodeRequest] = []
        self.answers: list[asyncio.Future[None]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.calls = EncodeCalls(self._encode, self._spawn)

    async def _encode(
        self, request: tokenizer_pb2.EncodeRequest, timeout_s: float
    ) -> tokenizer_pb2.EncodeResponse:
        self.asked.append(request)
        self.answers.append(asyncio.get_running_loop().create_future())
        await self.answers[-1]
        return tokenizer_pb2.EncodeResponse(items=[{"ids": [len(each.text)]} for each in request.items])

    def _spawn(self, coroutine: Coroutine[Any, Any, None], _: str) -> asyncio.Task[None]:
        self.tasks.append(asyncio.ensure_future(coroutine))
        return self.tasks[-1]

    def encode(self, text: str, lane: Lane = OURS, timeout_s: float = LONG_S) -> asyncio.Task[Encoded]:
        item = tokenizer_pb2.EncodeItem(text=text)
        return asyncio.ensure_future(self.calls.encode(lane, item, timeout_s))

    def texts(self) -> list[list[str]]:
        return [[item.text for item in each.items] for each in self.asked]


async def turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def ids(task: asyncio.Task[Encoded]) -> list[int]:
    return list(task.result().item.ids)


async def test_the_first_goes_at_once_and_who_comes_meanwhile_goes_together_when_it_is_back() -> None:
    service = Service()
    first = service.encode("1")
    await turns()
    others = [service.encode(text) for text in ("22", "333")]
    await turns()
    assert service.texts() == [["1"]]
    service.answers[0].set_result(None)
    await turns()
    assert service.texts() == [["1"], ["22", "333"]]
    assert ids(first) == [1]
    service.answers[1].set_result(None)
    await turns()
    assert [ids(each) for each in others] == [[2], [3]]


async def test_texts_of_different_tenants_share_no_call_and_do_not_wait_for_each_other() -> None:
    service = Service()
    service.encode("1")
    service.encode("22", THEIRS)
    await turns()
    assert service.texts() == [["1"], ["22"]]
    assert [each.tenant_tag for each in service.asked] == [b"ours", b"theirs"]


async def test_nobody_waits_longer_than_a_moment_for_a_call_that_hangs() -> None:
    service, loop = Service(), asyncio.get_running_loop()
    service.encode("1")
    await turns()
    since = loop.time()
    service.encode("22")
    await eventually(lambda: len(service.asked) == 2, "it goes although the first is not back")
    assert loop.time() - since >= WAIT_S


async def test_a_long_text_goes_alone_and_keeps_nobody_waiting() -> None:
    service = Service()
    long = "x" * (SHORT_BYTES + 1)
    service.encode(long)
    service.encode("1")
    service.encode(long)
    await turns()
    assert service.texts() == [[long], ["1"], [long]]


async def test_a_call_has_bounded_bytes() -> None:
    service = Service()
    service.encode("1")
    await turns()
    half = "x" * (BATCH_BYTES // 2 - 100)
    for _ in range(3):
        service.encode(half)
    await turns()
    assert service.texts() == [["1"], [half, half]]


async def test_who_has_no_time_left_fails_alone() -> None:
    service = Service()
    service.encode("1")
    await turns()
    hurried, patient = service.encode("22", timeout_s=0.001), service.encode("333")
    with pytest.raises(errors.DeadlineExceeded) as caught:
        await hurried
    assert caught.value.reason == "ENCODE_TIMEOUT"
    service.answers[0].set_result(None)
    await turns()
    assert service.texts()[1:] == [["333"]]
    service.answers[1].set_result(None)
    assert list((await patient).item.ids) == [3]


async def test_a_call_that_nobody_waits_for_any_more_is_given_up() -> None:
    service = Service()
    first = service.encode("1")
    await turns()
    others = [service.encode(text) for text in ("22", "333")]
    await turns()
    service.answers[0].set_result(None)
    await first
    await turns()
    others[0].cancel()
    await turns()
    assert not service.answers[1].cancelled()
    others[1].cancel()
    await turns()
    assert service.answers[1].cancelled()
    assert service.tasks[0].cancelled()


async def test_a_cancelled_first_lets_the_others_go() -> None:
    service = Service()
    first = service.encode("1")
    await turns()
    other = service.encode("22")
    await turns()
    first.cancel()
    await turns()
    assert service.texts() == [["1"], ["22"]]
    service.answers[1].set_result(None)
    assert list((await other).item.ids) == [2]


async def test_a_call_that_fails_fails_for_all_its_texts_and_for_no_other() -> None:
    service = Service()
    service.encode("1")
    await turns()
    others = [service.encode(text) for text in ("22", "333")]
    await turns()
    service.answers[0].set_exception(errors.Overloaded("too much"))
    await turns()
    service.answers[1].set_exception(errors.Unavailable("none is there"))
    for each in others:
        with pytest.raises(errors.Unavailable):
            await each
    again = service.encode("4444")
    await turns()
    service.answers[2].set_result(None)
    assert list((await again).item.ids) == [4]
