from __future__ import annotations

import hmac
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.members import frame
from services.common.scope import Keyring, ScopeKeys

MASTER = b"m" * 32


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(MASTER, tmp_path / "salts")


def test_tenants_share_no_key(keyring: Keyring) -> None:
    one, other = keyring.tenant("acme"), keyring.tenant("globex")
    assert one.tag != other.tag
    assert one.scope().key != other.scope().key
    assert one.scope().kv_key(b"model") != other.scope().kv_key(b"model")
    assert one.scope().cache_key("response", b"x") != other.scope().cache_key("response", b"x")


def test_users_of_a_tenant_share_no_key_with_each_other_or_the_tenant(keyring: Keyring) -> None:
    tenant = keyring.tenant("acme")
    keys = {tenant.scope().key, tenant.scope("ann").key, tenant.scope("bob").key, tenant.scope("").key}
    assert len(keys) == 4


def test_keys_outlive_the_process(tmp_path: Path) -> None:
    first = Keyring(MASTER, tmp_path).tenant("acme").scope().key
    assert Keyring(MASTER, tmp_path).tenant("acme").scope().key == first


def test_forgetting_a_tenant_makes_its_values_unreadable(tmp_path: Path) -> None:
    keyring = Keyring(MASTER, tmp_path)
    before = keyring.tenant("acme").scope()
    key = before.cache_key("response", b"prompt")
    sealed = before.seal(key, b"answer")
    keyring.forget("acme")
    after = keyring.tenant("acme").scope()
    assert after.open(key, sealed) is None
    assert after.cache_key("response", b"prompt") != key


def test_another_master_secret_gives_other_keys(tmp_path: Path) -> None:
    one, other = Keyring(b"a" * 32, tmp_path), Keyring(b"b" * 32, tmp_path)
    assert one.tenant("acme").scope().key != other.tenant("acme").scope().key


def test_a_value_opens_only_under_its_own_key(keyring: Keyring) -> None:
    scope = keyring.tenant("acme").scope()
    key, other = scope.cache_key("response", b"a"), scope.cache_key("response", b"b")
    sealed = scope.seal(key, b"answer")
    assert scope.open(key, sealed) == b"answer"
    assert scope.open(other, sealed) is None
    assert keyring.tenant("globex").scope().open(key, sealed) is None


@given(value=st.binary(max_size=200), position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_a_miss(value: bytes, position: int, bit: int) -> None:
    scope = ScopeKeys(b"k" * 32)
    sealed = bytearray(scope.seal(b"key", value))
    sealed[position % len(sealed)] ^= 1 << bit
    assert scope.open(b"key", bytes(sealed)) is None


@given(value=st.binary(max_size=40))
def test_garbage_is_a_miss(value: bytes) -> None:
    assert ScopeKeys(b"k" * 32).open(b"key", value) is None


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_fields_do_not_run_into_each_other(one: list[bytes], other: list[bytes]) -> None:
    assert (frame(*one) == frame(*other)) == (one == other)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "x" * 64, ".hidden", "ü"])
def test_a_tenant_cannot_be_named_like_a_path(keyring: Keyring, name: str) -> None:
    with pytest.raises(ValueError, match="tenant's name"):
        keyring.tenant(name)


def test_cache_keys_are_macs_of_framed_fields_so_that_what_is_kept_is_found_by_other_versions() -> None:
    fields = (b"headrace-scope-v1", b"cache-key", b"response", b"a", b"b")
    expected = hmac.digest(b"k" * 32, frame(*fields), "sha256")
    assert ScopeKeys(b"k" * 32).cache_key("response", b"a", b"b") == expected
