"""What each of several router processes is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from services.cache.settings import CacheSettings
from services.common.settings import SettingsError
from services.router import processes
from services.router.settings import RouterSettings
from services.tokenizer.settings import TokenizerSettings


def settings(**more: object) -> RouterSettings:
    values = {"processes": 3, "mesh_listen": "10.0.0.1:50061", "listen": "127.0.0.1:50051"}
    return RouterSettings(**{**values, **more})  # type: ignore[arg-type]


def test_each_has_ports_of_its_own_and_names_all_others() -> None:
    each = processes.plan(settings(metrics_listen="0.0.0.0:9090", siblings=("other:50061",), router_id="r"))
    assert [one.mesh_listen for one in each] == [f"10.0.0.1:{port}" for port in (50061, 50071, 50081)]
    assert [one.metrics_listen for one in each] == [f"0.0.0.0:{port}" for port in (9090, 9091, 9092)]
    assert {one.siblings for one in each} == {(*(one.mesh_listen for one in each), "other:50061")}
    assert [one.router_id for one in each] == ["r-0", "r-1", "r-2"]
    assert all(one.shared_port and one.processes == 1 for one in each)


def test_by_default_no_process_takes_the_port_of_another_service() -> None:
    others = {*RouterSettings().tokenizers, TokenizerSettings().listen, CacheSettings().listen}
    each = processes.plan(RouterSettings(processes=8, public_ports="counted"))
    taken = [address for one in each for address in (one.listen, one.mesh_listen)]
    assert len({*taken, *others}) == len(taken) + len(others)


def test_a_proxy_finds_each_at_a_public_port_of_its_own() -> None:
    each = processes.plan(settings(public_ports="counted"))
    assert [one.listen for one in each] == [f"127.0.0.1:{port}" for port in (50051, 50052, 50053)]
    assert not any(one.shared_port for one in each)
    assert {one.listen for one in processes.plan(settings())} == {"127.0.0.1:50051"}


def test_workers_are_told_the_advertised_name() -> None:
    each = processes.plan(settings(advertise="router:50061", mesh_listen="0.0.0.0:50061"))
    assert each[0].siblings == ("router:50061", "router:50071", "router:50081")
    assert [one.advertise for one in each] == list(each[0].siblings)


def test_port_0_is_any_port_each_another() -> None:
    each = processes.plan(settings(mesh_listen="127.0.0.1:0"))
    assert len({one.mesh_listen for one in each}) == 3
    assert all(not one.mesh_listen.endswith(":0") for one in each)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mesh_listen", "unix:/run/mesh.sock", "need host:port"),
        ("mesh_listen", "127.0.0.1:65534", "65554, the last of 3 ports from it, does not exist"),
    ],
)
def test_addresses_that_cannot_be_counted_up_are_refused(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        processes.plan(settings(**{name: value}))


def test_a_public_port_that_somebody_has_is_not_shared_with_him() -> None:
    with socket.socket() as somebody:
        somebody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        with (
            pytest.raises(SettingsError, match="HEADRACE_ROUTER_LISTEN sets"),
            processes.reserved(address),
        ):
            pass


def test_all_derive_the_same_keys_where_no_secret_is_set(tmp_path: Path) -> None:
    with processes.secrets_for(settings()) as shared:
        assert shared["master_secret_file"].stat().st_mode & 0o777 == 0o600
        assert len(bytes.fromhex(shared["master_secret_file"].read_text())) == 32
        gone = shared["master_secret_file"]
    assert not gone.exists()
    given = settings(master_secret_file=tmp_path / "secret", salts_directory=tmp_path / "salts")
    with processes.secrets_for(given) as shared:
        assert shared == {}
