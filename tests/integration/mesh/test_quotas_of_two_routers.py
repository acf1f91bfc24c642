"""One tenant's quotas over two router processes, one cache service and one Valkey, which then dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from headrace.v1 import router_pb2_grpc

from services.common import identity
from tests.support.calibrated import calibration, prompt, simulated_model
from tests.support.mesh import Mesh

TENANTS = {
    "requests": "requests_per_minute = 40",
    "tokens": "tokens_per_minute = 2400",
    "running": "concurrent_requests = 4",
    "memory": "kv_share = 0.25",
    "alone": "requests_per_minute = 40",
    "free": "",
}
KV_TOKENS, LENGTH = 4096, 448  # 64 blocks; a request needs 8 of them, so that two are a tenant's part


class Pair:
    """Two routers, and keys of all tenants."""

    def __init__(self, mesh: Mesh, keys: dict[str, str]) -> None:
        self.mesh = mesh
        self._keys = keys
        self._stubs = [router_pb2_grpc.RouterServiceStub(mesh.channel(each)) for each in mesh.addresses]

    def open(self, index: int, tenant: str, number: int, length: int, tokens: int) -> Any:
        """A stream by one of the routers."""
        key = (("authorization", f"Bearer {self._keys[tenant]}"),)
        return self._stubs[index].Generate(prompt(number, length, tokens=tokens), metadata=key, timeout=120)

    async def ask(self, index: int, tenant: str, number: int, length: int = 4, tokens: int = 1) -> str:
        """The outcome of a whole request: OK, or what it was refused for."""
        call = self.open(index, tenant, number, length, tokens)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            return str(error.details())
        finally:
            call.cancel()
        return "OK"


@pytest_asyncio.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    directory = tmp_path_factory.mktemp("quotas")
    keys = {each: identity.create_key(directory / "keys.toml", each) for each in TENANTS}
    tables = "\n".join(f"[tenants.{name}]\n{table}" for name, table in TENANTS.items())
    (directory / "tenants.toml").write_text(tables + "\n")
    router = {"keys_file": str(directory / "keys.toml"), "tenants_file": str(directory / "tenants.toml")}
    device = calibration(directory, step_s=0.02, kv_tokens=KV_TOKENS)
    worker = {"engine": "simulated", "simulated_calibration": device, "max_seqs": "32"}
    mesh = Mesh(directory, simulated_model(directory / "model"), router=router, worker=worker, routers=2)
    router["siblings"] = ",".join(mesh.mesh_address(number) for number in range(2))
    async with mesh:
        await mesh.add_worker()
        two = Pair(mesh, keys)
        for index in range(2):
            assert await two.ask(index, "free", index) == "OK"
        yield two


async def outcomes(pair: Pair, tenant: str, count: int, **request: int) -> tuple[list[str], float]:
    """What became of requests to both routers in turn, and how long they took."""
    began_s = time.monotonic()
    found = [await pair.ask(number % 2, tenant, number, **request) for number in range(count)]
    return found, time.monotonic() - began_s


async def test_two_routers_let_in_as_many_requests_a_minute_as_one_would(pair: Pair) -> None:
    found, took_s = await outcomes(pair, "requests", 120)
    assert set(found) == {"OK", "the requests of this minute are used up"}
    assert 38 <= found.count("OK") <= 42 + 40 / 60 * took_s


async def test_two_routers_let_in_as_many_tokens_a_minute_as_one_would(pair: Pair) -> None:
    """Who has tokens left may owe what one request takes, at each router."""
    found, took_s = await outcomes(pair, "tokens", 60, length=90, tokens=10)
    assert set(found) == {"OK", "the tokens of this minute are used up"}
    assert 2300 <= 100 * found.count("OK") <= 2400 * (1 + took_s / 60) + 2 * 100


async def test_requests_at_one_time_are_counted_over_both_routers(pair: Pair) -> None:
    calls = []
    try:
        for number in range(16):
            calls.append(pair.open(number % 2, "running", number, 4, 1500))
            await asyncio.wait([asyncio.ensure_future(calls[-1].read())], timeout=20)
        refused = [each for each in calls if each.done()]
        assert {await each.code() for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert 4 <= len(calls) - len(refused) <= 5, "at most one by a router that had not heard yet"
    finally:
        for each in calls:
            each.cancel()


async def test_a_tenants_part_of_the_kv_memory_is_kept_over_both_routers(pair: Pair) -> None:
    """What is beyond it waits; another tenant does not."""
    calls = [pair.open(number % 2, "memory", number, LENGTH, 60) for number in range(12)]
    first = [asyncio.ensure_future(each.read()) for each in calls]
    try:
        await asyncio.wait(first, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        assert await pair.ask(0, "free", 99) == "OK"
        assert await pair.ask(1, "free", 98) == "OK"
        assert sum(each.done() for each in first) < len(first), "not all of them run at once"
        await asyncio.wait_for(asyncio.gather(*first), 120)
    finally:
        for each in calls:
            each.cancel()


async def test_each_router_goes_on_with_its_share_when_valkey_dies(pair: Pair) -> None:
    pair.mesh.kill_valkey()
    found, took_s = await outcomes(pair, "alone", 120)
    assert set(found) == {"OK", "the requests of this minute are used up"}
    assert 36 <= found.count("OK") <= 44 + 40 / 60 * took_s
    assert [await pair.ask(index, "free", index) for index in range(2)] == ["OK", "OK"]
    assert all(pair.mesh.router(number).alive for number in range(2))
