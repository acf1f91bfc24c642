"""Kept answers and encodings: exact, per tenant, and never in the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from headrace.v1 import cache_pb2, router_pb2, types_pb2

from services.common.identity import create_key
from services.common.members import MeshSecret
from tests.support.cache_server import CacheServer
from tests.support.router_house import SECRET, Answer, House, open_house, read
from tests.support.scripted_worker import ScriptedWorker, all_at_once
from tests.support.waiting import TIMEOUT_S, eventually

Request = router_pb2.GenerateRequest
PATIENT = {"lookup_s": TIMEOUT_S}
PROMPT = "The router sends"
ANSWER = " each request to the worker that will answer it first. 日本語"


@pytest.fixture
async def cache() -> AsyncIterator[CacheServer]:
    server = await CacheServer(MeshSecret(SECRET)).start()
    yield server
    await server.stop()


@pytest.fixture
async def house(tmp_path: Path, cache: CacheServer) -> AsyncIterator[House]:
    async with open_house(tmp_path, cache=cache.address, caching=PATIENT) as it:
        yield it


async def worker(house: House, **options: Any) -> ScriptedWorker:
    return await house.worker(script=all_at_once(house.tokenizer.ids(ANSWER)), **options).connect()


async def ask(house: House, call: dict[str, Any] | None = None, **fields: Any) -> Answer:
    return await read(house.stub.Generate(Request(**({"text": PROMPT} | fields)), **(call or {})))


async def kept(cache: CacheServer, count: int = 1) -> None:
    await eventually(lambda: len(cache.entries) >= count, "it is stored")


async def test_an_equal_request_is_answered_from_the_cache(house: House, cache: CacheServer) -> None:
    it = await worker(house)
    first = await ask(house)
    await kept(cache)
    second = await ask(house, request_id="another", latency_class=types_pb2.LATENCY_CLASS_BATCH)
    assert len(it.submits) == 1
    assert (second.text, second.ids) == (first.text, first.ids) == (ANSWER, house.tokenizer.ids(ANSWER))
    finished = second.finished
    assert finished is not None
    assert (finished.cached_response, finished.worker_id, finished.attempts) == (True, "", 0)
    assert finished.request_id == "another"
    assert finished.latency_class == types_pb2.LATENCY_CLASS_BATCH
    assert finished.finish_reason == types_pb2.FINISH_REASON_LENGTH
    assert finished.usage.output_tokens == len(second.ids)
    unary = await house.stub.GenerateUnary(Request(text=PROMPT))
    assert (unary.text, unary.cached_response) == (ANSWER, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": PROMPT + "!"},
        {"max_tokens": 255},
        {"stop": ["x"]},
        {"sampling": {"min_tokens": 1}},
        {"sampling": {"logprobs": 0}},
    ],
)
async def test_another_request_is_not(house: House, cache: CacheServer, fields: dict[str, Any]) -> None:
    it = await worker(house)
    await ask(house)
    await kept(cache)
    answer = await ask(house, **fields)
    assert answer.finished is not None
    assert not answer.finished.cached_response
    assert len(it.submits) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling": {"temperature": 0.7, "seed": 1}},
        {"cache_scope": types_pb2.CACHE_SCOPE_NONE},
    ],
)
async def test_what_must_not_be_kept_is_neither_looked_up_nor_stored(
    house: House, cache: CacheServer, fields: dict[str, Any]
) -> None:
    it = await worker(house)
    for _ in range(2):
        await ask(house, **fields)
    await ask(house)
    await kept(cache)
    assert len(it.submits) == 3
    assert cache.lookups == 1
    assert len(cache.entries) == 1
    if "cache_scope" in fields:
        assert it.submits[0].kv_key == b""
        assert house.tokenizer.scopes[0] == b""


async def test_defaults_written_out_make_the_same_request(house: House, cache: CacheServer) -> None:
    it = await worker(house)
    await ask(house)
    await kept(cache)
    await ask(house, model="tiny", max_tokens=256, sampling={"temperature": 0, "top_p": 1, "seed": 5})
    assert len(it.submits) == 1


async def test_users_and_tenants_share_nothing(tmp_path: Path, cache: CacheServer) -> None:
    keys = tmp_path / "keys.toml"
    calls = [{"metadata": (("authorization", f"Bearer {create_key(keys, name)}"),)} for name in ("a", "b")]
    async with open_house(tmp_path, cache=cache.address, caching=PATIENT, keys_file=keys) as house:
        it = await worker(house)
        user = types_pb2.CACHE_SCOPE_USER
        variants: list[dict[str, Any]] = [
            {},
            {"cache_scope": user, "user": "u"},
            {"cache_scope": user, "user": "v"},
        ]
        for count, (call, fields) in enumerate(((c, f) for c in calls for f in variants), 1):
            answer = await ask(house, call, **fields)
            assert answer.finished is not None
            assert not answer.finished.cached_response
            await kept(cache, count)
        assert len({each.kv_key for each in it.submits}) == 6
        assert len({each.tenant_tag for each in it.submits}) == 2
        assert len(set(house.tokenizer.scopes)) == 6
        assert [house.tokenizer.tenants.count(tag) for tag in set(house.tokenizer.tenants)] == [3, 3]
        for call in calls:
            for fields in variants:
                answer = await ask(house, call, **fields)
                assert answer.finished is not None
                assert answer.finished.cached_response
        assert len(it.submits) == 6


async def test_the_cache_sees_neither_text_nor_ids(house: House, cache: CacheServer) -> None:
    await worker(house)
    await ask(house)
    await kept(cache)
    [(key, entry)] = cache.entries.items()
    assert (len(key), len(entry.tenant_tag), cache.kinds) == (32, 16, [cache_pb2.CACHE_KIND_RESPONSE])
    assert ANSWER.encode()[:8] not in entry.value


async def test_a_changed_value_is_a_miss(house: House, cache: CacheServer) -> None:
    it = await worker(house)
    await ask(house)
    await kept(cache)
    cache.corrupt = True
    answer = await ask(house)
    assert answer.text == ANSWER
    assert len(it.submits) == 2
    assert house.metric("headrace_router_cache_lookups_total", kind="response", outcome="corrupt") == 1


async def test_a_cache_that_hangs_or_dies_only_costs_hits(tmp_path: Path, cache: CacheServer) -> None:
    async with open_house(tmp_path, cache=cache.address) as house:
        it = await worker(house)
        cache.hang = True
        assert (await ask(house)).text == ANSWER
        assert house.metric("headrace_router_cache_lookups_total", kind="response", outcome="late") == 1
        await cache.stop()
        assert (await ask(house)).text == ANSWER
        assert len(it.submits) == 2


async def test_workers_of_other_numerics_do_not_share_answers(house: House, cache: CacheServer) -> None:
    first = await worker(house, numerics=b"1" * 32, worker_id="first")
    await ask(house)
    await kept(cache)
    await first.leave()
    await eventually(lambda: not list(house.router._dispatcher.workers), "the first is gone")
    second = await worker(house, numerics=b"2" * 32, worker_id="second")
    answer = await ask(house)
    assert answer.finished is not None
    assert not answer.finished.cached_response
    assert len(second.submits) == 1


async def test_long_texts_are_encoded_once(house: House, cache: CacheServer) -> None:
    it = await worker(house, max_tokens=1 << 20)
    text = "The wheel turns. " * 300
    await ask(house, text=text, max_tokens=2)
    await kept(cache, 2)
    await ask(house, text=text, max_tokens=3)
    assert house.tokenizer.encoded == 1
    assert it.submits[0].prompt_ids == it.submits[1].prompt_ids
    assert cache_pb2.CACHE_KIND_ENCODING in cache.kinds


def conversation(text: str) -> types_pb2.ChatMessages:
    return types_pb2.ChatMessages(messages=[types_pb2.ChatMessage(role="user", content=text)])


async def test_nothing_of_a_conversation_is_kept_where_the_template_tells_the_time(
    tmp_path: Path, cache: CacheServer
) -> None:
    long = "The wheel turns. " * 300
    async with open_house(tmp_path, cache=cache.address, caching=PATIENT, tells_time=True) as house:
        it = await worker(house, max_tokens=1 << 20)
        for _ in range(2):
            await ask(house, text=None, chat=conversation(long), max_tokens=2)
        await ask(house, text=long, max_tokens=2)
        await kept(cache, 2)
        assert house.tokenizer.encoded == 3
        assert len(it.submits) == 3
    assert len(cache.entries) == 2, "those of the text, whose ids stay the same"
