from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.common import members
from services.common.errors import Unauthenticated


@pytest.fixture
def mesh() -> members.MeshSecret:
    return members.MeshSecret(b"s" * 32)


def test_a_member_is_let_in(mesh: members.MeshSecret) -> None:
    mesh.check_token("cache", mesh.token("cache"))


@pytest.mark.parametrize("shown", [None, "", "x", b"\xff\xfe"])
def test_a_stranger_is_refused(mesh: members.MeshSecret, shown: str | bytes | None) -> None:
    with pytest.raises(Unauthenticated):
        mesh.check_token("cache", shown)


def test_a_token_of_one_service_opens_no_other(mesh: members.MeshSecret) -> None:
    with pytest.raises(Unauthenticated):
        mesh.check_token("admin", mesh.token("tokenizer"))


def test_proofs_depend_on_role_nonces_and_incarnation(mesh: members.MeshSecret) -> None:
    one, other = members.new_nonce(), members.new_nonce()
    proofs = {
        mesh.router_proof(one, other),
        mesh.router_proof(other, one),
        mesh.worker_proof(one, other, 1),
        mesh.worker_proof(one, other, 2),
        members.MeshSecret(b"t" * 32).router_proof(one, other),
    }
    assert len(proofs) == 5


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        members.MeshSecret(b"short")


def test_processes_that_start_together_agree_on_one_secret(tmp_path: Path) -> None:
    path = tmp_path / "mesh.secret"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: members.write_new_secret(path), range(32)))
    assert len(members.read_secret(path)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["mesh.secret"]
