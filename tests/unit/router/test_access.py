"""Keys and tenants are followed while the router runs, each file by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import structlog

from services.common import identity
from services.common.errors import Unauthenticated
from services.router import access
from services.router.access import Access
from tests.support.waiting import eventually


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A keys and a tenants file, looked at by every call."""
    monkeypatch.setattr(access, "CHECK_S", 0.0)
    return tmp_path / "keys.toml", tmp_path / "tenants.toml"


def _tenant(let_in: Access, key: str) -> identity.Tenant:
    return let_in.tenant(f"Bearer {key}")


def test_a_key_is_revoked_although_the_tenants_file_is_wrong(files: tuple[Path, Path]) -> None:
    keys, tenants = files
    lost, kept = identity.create_key(keys, "acme"), identity.create_key(keys, "acme")
    tenants.write_text("[tenants.acme]\nweight = 3\n")
    let_in = Access(*files)
    tenants.write_text("[tenants.acme]\nwieght = 30\n")
    identity.revoke_key(keys, lost.split("_")[1])
    assert _tenant(let_in, kept).weight == 3
    with pytest.raises(Unauthenticated):
        _tenant(let_in, lost)


def test_a_tenant_gets_new_bounds_although_the_keys_file_is_wrong(files: tuple[Path, Path]) -> None:
    keys, tenants = files
    key = identity.create_key(keys, "acme")
    let_in = Access(*files)
    keys.write_text("[[keys]\n")
    tenants.write_text("[tenants.acme]\nweight = 7\n")
    assert _tenant(let_in, key).weight == 7


def test_without_any_key_left_nobody_enters(files: tuple[Path, Path]) -> None:
    keys, _ = files
    key = identity.create_key(keys, "acme")
    let_in = Access(*files)
    assert _tenant(let_in, key).name == "acme"
    keys.unlink()
    with pytest.raises(Unauthenticated, match="keys create"):
        _tenant(let_in, key)


async def test_a_wrong_file_is_logged_although_nobody_calls(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "LOOK_S", 0.001)
    keys, tenants = files
    identity.create_key(keys, "acme")
    following = asyncio.create_task(Access(*files).follow())
    tenants.write_text("[tenants.acme]\nwieght = 30\n")
    with structlog.testing.capture_logs() as logged:
        await eventually(lambda: bool(logged), "the log says so", 5)
    following.cancel()
    assert [each["event"] for each in logged] == ["identity_not_reread"]
    assert "wieght" in logged[0]["error"]
