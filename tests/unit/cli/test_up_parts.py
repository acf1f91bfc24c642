"""Parts of `headrace up` that need no process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.errors import CliError, UsageError
from services.cli.state import Running, StateDir, locate, read_running, write_running
from services.cli.up.asked import check_public_ports, drain_s, metrics_addresses, threads
from services.cli.up.child import describe
from services.cli.up.devices import Device, choose
from services.cli.up.last_words import last_words, reason
from services.cli.up.lock import only_one
from services.cli.up.mesh import MeshPlan, children
from services.cli.up.ports import check_free, free_ports
from services.cli.up.screen import Screen
from services.cli.up.sockets import socket_directory
from services.common.backoff import FIRST_S, HEALTHY_S, MOST_S, Backoff


@given(st.lists(st.floats(0, HEALTHY_S, exclude_max=True), min_size=1, max_size=20))
def test_deaths_in_a_row_are_waited_for_longer_and_longer(served_s: list[float]) -> None:
    backoff = Backoff()
    delays = [backoff.after(each) for each in served_s]
    assert delays == [min(MOST_S, FIRST_S * 2**number) for number in range(len(delays))]


def test_who_served_long_starts_afresh() -> None:
    backoff = Backoff()
    delays = [backoff.after(served_s) for served_s in (0, 0, HEALTHY_S, 0)]
    assert delays == [0.5, 1.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with code 0"),
        (2, "ended with code 2"),
        (-9, "killed by SIGKILL"),
        (-99, "killed by signal 99"),
    ],
)
def test_exit_codes_are_told_in_words(code: int, words: str) -> None:
    assert describe(code) == words


@given(st.integers(1, 20), st.integers(1, 64))
def test_cpu_workers_share_the_cores(workers: int, cores: int) -> None:
    devices = choose([], workers, cores, {})
    assert len(devices) == workers
    assert {device.kind for device in devices} == {"cpu"}
    assert sum(device.threads or 0 for device in devices) <= max(workers, cores)
    assert all((device.threads or 0) >= 1 for device in devices)


def test_one_core_is_left_to_the_mesh_and_a_user_may_say_otherwise() -> None:
    threads = [[each.threads for each in choose([], None, cores, {})] for cores in (1, 2, 4, 16)]
    assert threads == [[1], [1], [3], [15]]
    assert choose([], None, 16, {"HEADRACE_WORKER_THREADS": "16"})[0].threads == 16


@pytest.mark.parametrize("threads", ["many", "0", "-1", "1.5"])
def test_threads_that_cannot_be_are_refused_by_their_name(threads: str) -> None:
    with pytest.raises(UsageError, match=f"^HEADRACE_WORKER_THREADS = '{threads}': allowed are"):
        choose([], None, 16, {"HEADRACE_WORKER_THREADS": threads})


def test_each_gpu_gets_a_worker_that_claims_it_itself() -> None:
    devices = choose(["H200", "H200"], None, 8, {})
    assert [(device.kind, device.visible) for device in devices] == [("cuda", None)] * 2
    assert len(choose(["H200", "H200"], 1, 8, {})) == 1


def test_visible_devices_of_the_environment_are_respected() -> None:
    devices = choose(["A", "B", "C"], None, 8, {"CUDA_VISIBLE_DEVICES": "2,GPU-1"})
    assert [device.visible for device in devices] == ["2", "GPU-1"]
    assert choose(["A"], None, 8, {"CUDA_VISIBLE_DEVICES": ""})[0].kind == "cpu"
    with pytest.raises(UsageError, match=r"^--workers 3: CUDA_VISIBLE_DEVICES=2,GPU-1 names 2"):
        choose(["A", "B", "C"], 3, 8, {"CUDA_VISIBLE_DEVICES": "2,GPU-1"})


def test_a_device_that_is_asked_for_is_used_or_refused() -> None:
    device = "HEADRACE_WORKER_DEVICE"
    assert [each.kind for each in choose(["A", "B"], None, 8, {device: "cpu"})] == ["cpu"]
    assert [each.kind for each in choose(["A", "B"], None, 8, {device: "cuda"})] == ["cuda", "cuda"]
    for gpus, environment in (([], {}), (["A"], {"CUDA_VISIBLE_DEVICES": "-1"})):
        with pytest.raises(CliError, match=f"^{device}=cuda, but no GPU is seen"):
            choose(gpus, None, 8, {device: "cuda", **environment})
    with pytest.raises(CliError, match="=tpu: allowed are auto, cpu and cuda"):
        choose([], None, 8, {device: "tpu"})


def test_simulated_workers_take_neither_cores_nor_gpus() -> None:
    environment = {"HEADRACE_WORKER_ENGINE": "simulated"}
    assert set(choose(["A"], 40, 2, environment)) == {Device("cpu", "simulated")}
    assert [len(choose([], workers, 2, environment)) for workers in (None, 1, 40)] == [1, 1, 40]


def test_a_taken_port_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(CliError, match=f"127.0.0.1:{port} .*another --port"):
            check_free(port)
    assert len(set(free_ports(20))) == 20


def test_a_state_directory_is_for_one_at_a_time(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    with only_one(state):
        write_running(state, Running(7, "127.0.0.1:1", "127.0.0.1:2"))
        with pytest.raises(CliError, match=r"\(pid 7, 127\.0\.0\.1:1\) uses"), only_one(state):
            pass
    assert read_running(state) is None
    with only_one(state):
        pass


def test_the_state_directory_is_found_as_documented(tmp_path: Path) -> None:
    home = {"HEADRACE_STATE_DIR": "/a", "XDG_STATE_HOME": "/b"}
    assert locate(tmp_path, home).path == tmp_path
    assert locate(None, home).path == Path("/a")
    assert locate(None, {"XDG_STATE_HOME": "/b"}).path == Path("/b/headrace")
    assert locate(None, {}).path == Path.home() / ".local/state/headrace"


def test_secrets_are_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    state.prepare()
    before = state.master_secret.read_bytes(), state.mesh_secret.read_bytes()
    state.prepare()
    assert (state.master_secret.read_bytes(), state.mesh_secret.read_bytes()) == before
    assert before[0] != before[1]
    assert state.path.stat().st_mode & 0o777 == 0o700


def planned(path: Path, devices: tuple[Device, ...], mesh_ports: tuple[int, ...] = (2,)) -> MeshPlan:
    return MeshPlan(
        model="m",
        port=1,
        mesh_ports=mesh_ports,
        state=StateDir(path),
        sockets=path,
        devices=devices,
        environment=dict(os.environ),
    )


def test_several_routers_share_the_public_port_and_know_each_other(tmp_path: Path) -> None:
    specs = {spec.name: spec for spec in children(planned(tmp_path, (), (2, 3)))}
    routers = [specs["router-0"].environment, specs["router-1"].environment]
    assert [each["HEADRACE_ROUTER_LISTEN"] for each in routers] == ["127.0.0.1:1"] * 2
    assert [each["HEADRACE_ROUTER_MESH_LISTEN"] for each in routers] == ["127.0.0.1:2", "127.0.0.1:3"]
    assert {each["HEADRACE_ROUTER_SIBLINGS"] for each in routers} == {"127.0.0.1:2,127.0.0.1:3"}
    assert {each["HEADRACE_ROUTER_SHARED_PORT"] for each in routers} == {"True"}
    assert len({each["HEADRACE_ROUTER_METRICS_LISTEN"] for each in routers}) == 2


def test_every_child_gets_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_API_KEY", "hr_secret")
    devices = tuple(choose([], 2, 4, {}))
    plan = planned(tmp_path, devices)
    specs = {spec.name: spec for spec in children(plan)}
    assert list(specs) == ["router", "worker-0", "worker-1", "tokenizer", "cache", "valkey"]
    assert specs["worker-1"].environment["HEADRACE_WORKER_WORKER_ID"] == "worker-1"
    assert specs["worker-1"].environment["HEADRACE_WORKER_THREADS"] == "1"
    assert not any("hr_secret" in spec.environment.values() for spec in specs.values())
    addresses = [spec.address for spec in specs.values()]
    assert len(set(addresses)) == len(addresses)
    stages = {name: spec.stage for name, spec in specs.items()}
    assert stages["router"] < stages["worker-0"] == stages["worker-1"] < stages["cache"] < stages["valkey"]


def test_what_a_user_set_is_not_overridden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_DRAIN_TIMEOUT_S", "40")
    monkeypatch.setenv("HEADRACE_ROUTER_DRAIN_TIMEOUT_S", "3")
    monkeypatch.setenv("HEADRACE_ROUTER_METRICS_LISTEN", "127.0.0.1:9100")
    specs = {spec.name: spec for spec in children(planned(tmp_path, (Device("cpu", "CPU"),), (2, 3)))}
    assert specs["router-0"].environment["HEADRACE_ROUTER_DRAIN_TIMEOUT_S"] == "3.0"
    assert specs["worker-0"].environment["HEADRACE_WORKER_DRAIN_TIMEOUT_S"] == "40.0"
    assert specs["worker-0"].stop_timeout_s > 40
    assert specs["router-0"].metrics_url == "http://127.0.0.1:9100/metrics"
    assert specs["router-1"].environment["HEADRACE_ROUTER_METRICS_LISTEN"] == "127.0.0.1:9101"


def test_a_file_says_as_much_as_the_environment_unless_that_says_more(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text("[mesh]\ndrain_timeout_s = 40\n[router]\ndrain_timeout_s = 3\n[worker]\nthreads = 2\n")
    told = {"HEADRACE_CONFIG": str(file)}
    assert [drain_s(told, service) for service in ("router", "worker")] == [3.0, 40.0]
    assert drain_s({**told, "HEADRACE_DRAIN_TIMEOUT_S": "7"}, "router") == 7.0
    assert threads(told) == 2
    assert metrics_addresses(told, ["router"])[0].startswith("127.0.0.1:")


def test_metrics_of_several_processes_count_up_from_what_was_set() -> None:
    everything = {"HEADRACE_METRICS_LISTEN": "0.0.0.0:9100"}
    assert metrics_addresses(everything, ["router", "worker"]) == ["0.0.0.0:9100", "0.0.0.0:9101"]
    free = metrics_addresses({"HEADRACE_METRICS_LISTEN": "127.0.0.1:0"}, ["router", "worker"])
    assert len(set(free)) == 2
    assert not any(address.endswith(":0") for address in free)


def test_settings_that_up_cannot_follow_are_refused() -> None:
    for drain in ("soon", "-1", "inf", "nan"):
        with pytest.raises(UsageError, match=f"^DRAIN_TIMEOUT_S of the router = '{drain}'"):
            drain_s({"HEADRACE_DRAIN_TIMEOUT_S": drain}, "router")
    with pytest.raises(UsageError, match=r"^METRICS_LISTEN of the cache = 'here'"):
        metrics_addresses({"HEADRACE_CACHE_METRICS_LISTEN": "here"}, ["cache"])
    counted = {"HEADRACE_ROUTER_PUBLIC_PORTS": "counted"}
    check_public_ports(counted, 1)
    with pytest.raises(UsageError, match=r"^HEADRACE_ROUTER_PUBLIC_PORTS = 'counted'"):
        check_public_ports(counted, 2)


def test_last_words_leave_out_what_is_routine() -> None:
    lines = [
        '{"event": "serving", "level": "info", "service": "worker"}',
        "Traceback (most recent call last):",
        "ValueError: no",
        '{"event": "task_failed", "level": "error", "task": "engine", "timestamp": "2026"}',
        "",
        "[1]",
    ]
    assert last_words(lines, 3) == ["ValueError: no", "error: task_failed task=engine", "[1]"]
    assert last_words(lines[:1], 3) == []


def test_last_words_of_valkey_are_its_warnings() -> None:
    lines = [
        "20927:M 22 Nov 2026 02:51:07.754 # Out of memory allocating 8 bytes!",
        "20927:M 22 Nov 2026 02:51:07.754 * Ready to accept connections unix",
        "20927:M 22 Nov 2026 02:51:07.754 # WARNING Memory overcommit must be enabled!",
        "20927:C 22 Nov 2026 02:51:07.754 # Warning: no config file specified",
    ]
    assert last_words(lines, 3) == lines[:1]


def test_last_words_are_whole_words() -> None:
    (line,) = last_words(["ValueError: " + "word " * 100], 1)
    assert line.endswith(" word …")
    assert len(line) <= 200
    assert last_words(["x" * 300], 1) == ["x" * 198 + " …"]


def test_the_sockets_of_a_run_that_was_killed_are_removed_by_the_next(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    with socket_directory(state) as first:
        (first / "left").touch()
        told = state.sockets.read_text()
    assert not first.exists()
    first.mkdir()
    (first / "left").touch()
    state.sockets.write_text(told)  # as a kill leaves it
    with socket_directory(state) as second:
        assert not first.exists()
        assert second.stat().st_mode & 0o777 == 0o700
    assert not second.exists()
    assert not state.sockets.exists()


def test_no_directory_of_others_is_removed(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    (precious := tmp_path / "precious").mkdir()
    (link := tmp_path / "headrace-link").symlink_to(precious)
    for told in (precious, link, tmp_path / "headrace-gone"):
        state.sockets.write_text(str(told))
        with socket_directory(state):
            assert precious.is_dir()


def test_last_words_leave_out_what_was_long_before_the_end() -> None:
    lines = [
        '{"event": "no_api_keys", "level": "warning", "timestamp": "2026-11-22T02:05:09.806380Z"}',
        '{"event": "bad_frame", "level": "warning", "timestamp": "2026-11-22T02:15:09.806380Z"}',
        '{"event": "undated", "level": "error"}',
    ]
    told = last_words(lines, 3, "2026-11-22T02:15:00.000001+00:00")
    assert told == ["warning: bad_frame", "error: undated"]


def test_the_reason_is_that_of_the_last_event_which_gives_one() -> None:
    died = '{"event": "engine_died", "level": "error", "reason": "the engine ended (exit code 86)"}'
    failed = '{"event": "task_failed", "level": "error", "task": "engine-reports"}'
    drain = '{"event": "asked_to_leave", "level": "info", "reason": "operator"}'
    assert reason([died, failed, drain, "Traceback"]) == "engine_died: the engine ended (exit code 86)"
    assert reason([failed, drain, "Traceback"]) == ""


def test_news_do_not_run_into_an_answer(capfd: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.write("half a li")
    screen.say("worker-0 died")
    screen.write("ne\n")
    screen.say("it is back")
    out, err = capfd.readouterr()
    assert (out, err) == ("half a li\nne\n", "worker-0 died\nit is back\n")
