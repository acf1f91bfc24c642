"""A router whose directory of salts takes no new file: the disk is full, or somebody mounted it read-only."""

from __future__ import annotations

import secrets
from pathlib import Path

import grpc
import pytest
from headrace.v1 import router_pb2

from services.common.identity import create_key
from tests.support.router_house import House, details, open_house
from tests.support.scripted_worker import all_at_once
from tests.support.waiting import eventually


async def ask(house: House, key: str) -> None:
    await house.stub.GenerateUnary(
        router_pb2.GenerateRequest(text="x", max_tokens=1),
        metadata=(("authorization", f"Bearer {key}"),),
        timeout=20,
    )


async def test_who_has_no_salt_yet_is_refused_and_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "master.secret").write_text(secrets.token_hex(32))
    (tmp_path / "tenants.toml").write_text("[tenants.new]\nrequests_per_minute = 600\n")
    known, new = (create_key(tmp_path / "keys.toml", tenant) for tenant in ("known", "new"))
    salts = tmp_path / "salts"
    async with open_house(
        tmp_path,
        cache="127.0.0.1:1",  # nobody is there; quotas are asked for all the same
        master_secret_file=tmp_path / "master.secret",
        salts_directory=salts,
        keys_file=tmp_path / "keys.toml",
        tenants_file=tmp_path / "tenants.toml",
    ) as house:
        await house.worker(script=all_at_once([7])).connect()
        await ask(house, known)
        away = salts.rename(tmp_path / "away")
        salts.touch()

        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await ask(house, new)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert details(failed.value)["ErrorInfo"].reason == "NO_TENANT_KEYS"
        assert details(failed.value)["RetryInfo"].retry_delay.ToNanoseconds() > 0
        claims = "headrace_quota_claims_total"
        await eventually(lambda: house.metric(claims, outcome="unanswered"), "its quota was asked for")
        await ask(house, known)
        assert not house.router.tasks.failed.done(), "what asks for quotas goes on"

        salts.unlink()
        away.rename(salts)
        await ask(house, new)
