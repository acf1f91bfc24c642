"""What an operator reads of a request in the router's log: how it ended, where, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog
from headrace.v1 import router_pb2

from services.common.identity import create_key
from tests.support.router_house import House, open_house, read
from tests.support.scripted_worker import all_at_once, update
from tests.support.waiting import eventually

Request = router_pb2.GenerateRequest
IDS = [65, 66, 67]


def told(logs: list[Any], event: str) -> list[dict[str, Any]]:
    return [each for each in logs if each["event"] == event]


async def left_midway(house: House) -> None:
    worker = await house.worker(worker_id="a").connect()
    call = house.stub.Generate(Request(text="x"))
    worker.say(update(await worker.submitted(), 0, IDS[:2]))
    await call.read()
    call.cancel()
    await eventually(lambda: house.metric("headrace_requests_running") == 0, "nothing runs")


async def test_of_a_stream_that_was_left_midway_its_worker_and_first_token_are_told(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        with structlog.testing.capture_logs() as logs:
            await left_midway(house)
    (ended,) = told(logs, "request")
    assert (ended["outcome"], ended["why"], ended["worker"]) == ("cancelled", "", "a")
    assert 0 <= ended["first_token_ms"] <= ended["total_ms"]


async def test_what_no_worker_has_is_named(tmp_path: Path) -> None:
    async with open_house(tmp_path, interactive={"patience_s": 0.1}) as house:
        await house.worker(script=all_at_once(IDS)).connect()
        with structlog.testing.capture_logs() as logs:
            await read(house.stub.Generate(Request(text="x", required_labels={"region": "eu"})))
    (ended,) = told(logs, "request")
    assert ended["outcome"] == "no_worker"
    assert "region=eu" in ended["why"]


async def test_refusals_at_the_door_are_told_by_tenant_once_a_minute(tmp_path: Path) -> None:
    keys, tenants = tmp_path / "keys.toml", tmp_path / "tenants.toml"
    bearer = (("authorization", f"Bearer {create_key(keys, 'acme')}"),)
    tenants.write_text("[tenants.acme]\nrequests_per_minute = 1\n")
    async with open_house(tmp_path, keys_file=keys, tenants_file=tenants) as house:
        await house.worker(script=all_at_once(IDS)).connect()
        with structlog.testing.capture_logs() as logs:
            for _ in range(4):
                await read(house.stub.Generate(Request(text="x"), metadata=bearer))
            await read(house.stub.Generate(Request(text="secret", max_tokens=0), metadata=bearer))
    refused = [(each["tenant"], each["outcome"], each["why"]) for each in told(logs, "refused")]
    assert refused == [
        ("acme", "quota_exceeded", "the requests of this minute are used up"),
        ("acme", "invalid_argument", "max_tokens"),
    ]
    assert "secret" not in str(logs)
