"""keys and init: what they write, what they show once, and what a second run leaves alone."""

from __future__ import annotations

import stat
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from services.common import transport
from services.common.identity import load
from tests.support.commands import headrace


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()
    }


async def test_a_key_is_created_listed_and_revoked(tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path))
    created = await headrace("keys", "create", "acme", *state)
    assert created.err.startswith(f"The first key in {tmp_path}/keys.toml: from now on every call")
    key = created.out.strip()
    identifier = key.split("_")[1]
    assert load(tmp_path / "keys.toml", None).authenticate(f"Bearer {key}").name == "acme"
    listed = await headrace("keys", "list", *state)
    assert listed.out.splitlines()[1].split("\t")[:2] == [identifier, "acme"]
    assert key not in listed.out
    assert (await headrace("keys", "revoke", identifier, *state)).code == 0
    assert load(tmp_path / "keys.toml", None).keys == {}
    assert (await headrace("keys", "list", *state)).err.startswith(f"No keys in {tmp_path}/keys.toml: nobody")
    again = await headrace("keys", "revoke", identifier, *state)
    assert (again.code, again.err) == (1, f"headrace: no key {identifier} in {tmp_path}/keys.toml\n")


async def test_only_the_first_key_says_that_calls_need_one_now(tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path))
    notes = [(await headrace("keys", "create", tenant, *state)).err for tenant in ("acme", "globex")]
    assert [bool(note) for note in notes] == [True, False]


async def test_a_name_that_is_no_tenants_is_refused(tmp_path: Path) -> None:
    found = await headrace("keys", "create", "../up", "--state-dir", str(tmp_path))
    assert (found.code, found.err.count("\n"), content(tmp_path)) == (2, 1, {})


async def test_init_writes_everything_once(tmp_path: Path) -> None:
    arguments = (
        "init",
        "--state",
        str(tmp_path / "state"),
        "--tls",
        str(tmp_path / "tls"),
        "--tenant",
        "acme",
    )
    first = await headrace(*arguments)
    before = content(tmp_path)
    assert set(before) == {
        *("state/master.secret", "state/mesh.secret", "state/valkey.password", "state/keys.toml"),
        *("tls/authority.pem", "tls/mesh.pem", "tls/mesh.key"),
    }
    key = first.out.splitlines()[-1]
    assert load(tmp_path / "state/keys.toml", None).authenticate(f"Bearer {key}").name == "acme"
    second = await headrace(*arguments)
    assert content(tmp_path) == before
    assert "hr_" not in second.out


async def test_init_leaves_secrets_to_their_owner_alone(tmp_path: Path) -> None:
    await headrace("init", "--state", str(tmp_path / "state"), "--tls", str(tmp_path / "tls"))
    secret = [*(tmp_path / "state").glob("*.*"), tmp_path / "tls" / "mesh.key"]
    assert [stat.S_IMODE(file.stat().st_mode) for file in secret] == [0o600] * len(secret)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_members_with_the_certificate_speak_and_others_do_not(tmp_path: Path) -> None:
    await headrace("init", "--state", str(tmp_path / "state"), "--tls", str(tmp_path), "--name", "r.example")
    tls = transport.Tls(
        authority=tmp_path / "authority.pem", certificate=tmp_path / "mesh.pem", key=tmp_path / "mesh.key"
    )
    server = transport.server()
    port = transport.listen(server, transport.Listener("127.0.0.1:0", tls))
    await server.start()
    try:
        for files, code in ((tls, "UNIMPLEMENTED"), (transport.Tls(authority=tls.authority), "UNAVAILABLE")):
            async with transport.channel(f"127.0.0.1:{port}", files) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/none/None")(b"", timeout=10)
            assert caught.value.code().name == code
    finally:
        await server.stop(None)
    names = x509.load_pem_x509_certificate((tmp_path / "mesh.pem").read_bytes()).extensions
    found = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"router", "r.example"} <= set(found.get_values_for_type(x509.DNSName))
