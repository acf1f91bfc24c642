"""docker-compose.yaml keeps its promises: hardened, closed, in order, with settings that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from docs.settings_page import settings_classes
from services.cli.init import DEFAULT_NAMES
from services.common.lifecycle import STOP_TIMEOUT_S
from services.common.models.store import CACHE_VARIABLE
from services.common.settings import ServiceSettings
from services.worker.engine.torch.compiled.keeping import KERNELS_VARIABLE
from tests.support.compose import CPU, GPU, ROOT, Project, render, seconds

SERVICES = ("router", "tokenizer", "cache", "worker")


@pytest.fixture(scope="module", params=[GPU, CPU], ids=["gpu", "cpu"])
def project(request: pytest.FixtureRequest) -> Project:
    return render(request.param)


def mounts(project: Project, volume: str) -> dict[str, bool]:
    """Services that mount a volume, and whether they may write to it."""
    return {
        name: not mount.get("read_only", False)
        for name, service in project["services"].items()
        for mount in service.get("volumes", ())
        if mount["source"] == volume
    }


def test_containers_can_do_nothing_beyond_their_work(project: Project) -> None:
    for name, service in project["services"].items():
        assert service["user"] == "10001:10001", name
        assert service["cap_drop"] == ["ALL"], name
        assert (service["read_only"], service["init"]) == (True, True), name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not {"privileged", "cap_add", "pid", "ipc", "container_name"} & service.keys(), name


def test_only_the_public_port_is_published_and_only_to_this_machine(project: Project) -> None:
    published = {
        (name, port["target"], port["host_ip"], port["published"])
        for name, service in project["services"].items()
        for port in service.get("ports", ())
    }
    assert published == {("router", 50051, "127.0.0.1", "50051")}


def test_secrets_go_to_those_who_need_them(project: Project) -> None:
    assert mounts(project, "router") == {"init": True, "router": True}
    assert mounts(project, "mesh") == {"init": True, **dict.fromkeys(SERVICES, False)}
    assert mounts(project, "valkey") == {"init": True, "valkey": False, "cache": False}
    assert mounts(project, "kernels").items() <= {"worker": True}.items(), "what lies there is run"
    assert mounts(project, "models") == {"model": True, "tokenizer": False, "worker": False}


def test_only_the_cache_reaches_valkey_and_only_router_and_model_the_outside(project: Project) -> None:
    networks = {name: set(service.get("networks", ())) for name, service in project["services"].items()}
    assert {name for name, joined in networks.items() if "store" in joined} == {"valkey", "cache"}
    assert {name for name, joined in networks.items() if "outside" in joined} == {"router", "model"}
    closed = {name for name, network in project["networks"].items() if network.get("internal")}
    assert closed == {"mesh", "store"}
    assert project["services"]["init"]["network_mode"] == "none"


def test_every_service_has_a_health_check_and_waits_for_what_it_needs(project: Project) -> None:
    for name in (*SERVICES, "valkey"):
        service = project["services"][name]
        assert service["healthcheck"]["test"], name
        assert service["depends_on"]["init"]["condition"] == "service_completed_successfully", name
    for name in ("tokenizer", "worker"):
        needs = project["services"][name]["depends_on"]
        assert needs["model"]["condition"] == "service_completed_successfully", name
    assert set(project["services"]["router"]["depends_on"]) == {"init", "cache", "tokenizer", "worker"}


def test_containers_are_not_killed_while_they_drain(project: Project) -> None:
    for name, kind in settings_classes().items():
        drain = kind.model_fields["drain_timeout_s"].default
        assert seconds(project["services"][name]["stop_grace_period"]) > drain + STOP_TIMEOUT_S, name


def test_every_setting_in_the_file_exists(project: Project) -> None:
    known = settings_classes()
    shared = {f"HEADRACE_{name.upper()}" for name in ServiceSettings.model_fields}
    for name in SERVICES:
        own = {f"HEADRACE_{name.upper()}_{field.upper()}" for field in known[name].model_fields}
        everybody = {f"HEADRACE_{field.upper()}" for field in known[name].model_fields}
        used = {key for key in project["services"][name]["environment"] if key.startswith("HEADRACE_")}
        assert used - own - everybody - shared - {CACHE_VARIABLE, KERNELS_VARIABLE} == set(), name


def test_the_meshs_certificate_names_every_internal_host(project: Project) -> None:
    names = "|".join(SERVICES)
    values = (value for name in SERVICES for value in project["services"][name]["environment"].values())
    dialled = {host for value in values for host in re.findall(rf"\b({names}):\d+", value)}
    assert dialled == {"router", "tokenizer", "cache"}
    assert dialled <= set(DEFAULT_NAMES)


def test_only_the_gpu_file_asks_for_gpus() -> None:
    reservation = render(GPU)["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert reservation == [{"driver": "nvidia", "count": -1, "capabilities": ["gpu"]}]
    worker = render(CPU)["services"]["worker"]
    assert "deploy" not in worker
    assert worker["environment"]["HEADRACE_WORKER_DEVICE"] == "cpu"


def test_images_and_compose_file_run_the_same_commands(project: Project) -> None:
    stages = dockerfile_commands()
    for name in SERVICES:
        service = project["services"][name]
        assert service["build"]["target"] == name
        assert stages[name] == service["command"], name


def test_dockerfile_is_in_shape() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    command = [str(hadolint), "--no-color", "-c", "deploy/hadolint.yaml", "deploy/Dockerfile"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_images_hold_nothing_but_what_runs() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in allowed
    for source in (source for line in copied for source in line.split()):
        assert f"!{source}" in allowed, f"{source} is not sent to the builder"


def dockerfile_commands() -> dict[str, list[str]]:
    """CMD by stage."""
    found: dict[str, list[str]] = {}
    stage = ""
    for line in (ROOT / "deploy/Dockerfile").read_text().splitlines():
        if match := re.match(r"FROM \S+ AS (\S+)", line):
            stage = match.group(1)
        elif line.startswith("CMD "):
            found[stage] = shlex.split(line.removeprefix("CMD ").strip("[]").replace(",", " "))
    return found
