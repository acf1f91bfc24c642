"""Two routers keep one tenant's quota together through Valkey, and each its share without it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from headrace.v1 import router_pb2

from services.common.identity import create_key
from tests.support.cache_service import RunningCache, running_cache
from tests.support.router_house import SECRET, House, details, open_house
from tests.support.scripted_worker import all_at_once
from tests.support.valkey import TestValkey, valkey
from tests.support.waiting import eventually, eventually_async

__all__ = ["valkey"]
Request = router_pb2.GenerateRequest


class Pair:
    """Two routers of one mesh, and a key of one tenant."""

    def __init__(self, houses: list[House], cache: RunningCache, key: str) -> None:
        self.houses = houses
        self.cache = cache
        self._metadata = (("authorization", f"Bearer {key}"),)

    async def ask(self, index: int) -> str:
        """One short request to a router; its outcome."""
        call = self.houses[index].stub.GenerateUnary(Request(text="x", max_tokens=1), metadata=self._metadata)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return refusal(error)
        return "OK"

    def open(self, index: int) -> Any:
        """A stream that does not end by itself."""
        return self.houses[index].stub.Generate(Request(text="hold", max_tokens=1), metadata=self._metadata)


def refusal(error: grpc.aio.AioRpcError) -> str:
    """The reason, of a refusal that says when to retry."""
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error.details()
    assert details(error)["RetryInfo"].retry_delay.ToNanoseconds() > 0
    return str(details(error)["ErrorInfo"].reason)


@asynccontextmanager
async def pair(directory: Path, valkey: TestValkey, tenant: str, **worker: Any) -> AsyncIterator[Pair]:
    (directory / "routers.secret").write_text(SECRET.hex())
    (directory / "master.secret").write_text(secrets.token_hex(32))
    (directory / "tenants.toml").write_text(f"[tenants.acme]\n{tenant}\n")
    key = create_key(directory / "keys.toml", "acme")
    async with AsyncExitStack() as stack:
        settings = {"valkey_url": valkey.url, "mesh_secret_file": directory / "routers.secret"}
        cache = await stack.enter_async_context(running_cache(directory, **settings))
        houses = []
        for name in ("one", "two"):
            (directory / name).mkdir()
            house = await stack.enter_async_context(
                open_house(
                    directory / name,
                    cache=cache.address,
                    siblings=("127.0.0.1:1",),  # the share of a quota is one half
                    master_secret_file=directory / "master.secret",
                    salts_directory=directory / "salts",
                    keys_file=directory / "keys.toml",
                    tenants_file=directory / "tenants.toml",
                    router_id=name,
                )
            )
            await house.worker(script=all_at_once([7]), **worker).connect()
            houses.append(house)
        await cache.until_valkey_is(True)
        yield Pair(houses, cache, key)


async def test_two_routers_let_in_what_one_would(tmp_path: Path, valkey: TestValkey) -> None:
    async with pair(tmp_path, valkey, "requests_per_minute = 40") as two:
        outcomes, began_s = [], time.monotonic()
        for number in range(120):
            outcomes.append(await two.ask(number % 2))
        came_back = 40 / 60 * (time.monotonic() - began_s)
        assert set(outcomes) == {"OK", "QUOTA_EXCEEDED"}
        assert 38 <= outcomes.count("OK") <= 42 + came_back, "a burst, and what came back meanwhile"
        assert two.houses[0].metric("headrace_quota_claims_total", outcome="answered") > 0


async def test_one_busy_router_gets_what_the_other_does_not_use(tmp_path: Path, valkey: TestValkey) -> None:
    async with pair(tmp_path, valkey, "requests_per_minute = 40") as two:
        passed = 0
        for _ in range(400):
            passed += await two.ask(0) == "OK"
        assert passed >= 38, "more than the share of one router"


async def test_each_router_goes_on_with_its_share_when_valkey_is_dead(
    tmp_path: Path, valkey: TestValkey
) -> None:
    async with pair(tmp_path, valkey, "requests_per_minute = 40") as two:
        valkey.kill()
        began_s = time.monotonic()
        outcomes = [await two.ask(1) for _ in range(60)]
        assert 18 <= outcomes.count("OK") <= 22 + 20 / 60 * (time.monotonic() - began_s)


async def test_a_frozen_valkey_holds_up_no_request(tmp_path: Path, valkey: TestValkey) -> None:
    async with pair(tmp_path, valkey, "requests_per_minute = 4000") as two:
        valkey.freeze()
        outcomes = await asyncio.wait_for(asyncio.gather(*(two.ask(n % 2) for n in range(40))), 60)
        valkey.thaw()
        assert set(outcomes) == {"OK"}


async def test_requests_at_one_time_are_counted_over_both_routers(tmp_path: Path, valkey: TestValkey) -> None:
    async with pair(tmp_path, valkey, "concurrent_requests = 4") as two:
        for house in two.houses:
            house.workers[0]._script = None
        held = [two.open(0) for _ in range(2)]
        await eventually(lambda: len(two.houses[0].workers[0].submits) == 2, "two run at the first router")

        async def one_more(index: int) -> bool:
            call, submits = two.open(index), two.houses[index].workers[0].submits
            before = len(submits)
            held.append(call)
            await eventually(lambda: call.done() or len(submits) > before, "in or refused")
            return not call.done()

        await eventually_async(lambda: one_more(0), "the first router gets more than its share")
        running = 3
        for _ in range(12):
            running += await one_more(1)
        assert running <= 5, "all of them, and at most one by a router that had not heard yet"
        for call in held:
            call.cancel()
