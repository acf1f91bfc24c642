"""Settings that contradict are refused at start, one line each, by the setting's name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.common.identity import Tenant, load
from services.common.settings import SettingsError
from services.router import scheduling
from services.router.policy import LatencyClass
from services.router.settings import RouterSettings


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"interactive": {"share": -1.0}}, "HEADRACE_ROUTER_INTERACTIVE: interactive.share"),
        ({"standard": {"ttft_s": 0.1, "tpot_s": 0.05}}, "HEADRACE_ROUTER_STANDARD: standard.ttft_s"),
        ({"interactive": {"ttft_s": 5.0}}, "HEADRACE_ROUTER_INTERACTIVE: standard.ttft_s: 2 s is shorter"),
        (
            {"interactive": {"ttft_s": 5.0}, "standard": {"ttft_s": 1.0}},
            "HEADRACE_ROUTER_INTERACTIVE, HEADRACE_ROUTER_STANDARD: standard.ttft_s: 1 s is shorter",
        ),
        (
            {"interactive": {"ttft_s": 0.01, "tpot_s": 0.04}},
            "HEADRACE_ROUTER_INTERACTIVE: interactive.tpot_s",
        ),
        ({"scheduling": {"output_weight": -2.0}}, "HEADRACE_ROUTER_SCHEDULING: output_weight"),
        ({"scheduling": {"sheddable_ramp": (0.8, 0.5)}}, "HEADRACE_ROUTER_SCHEDULING: sheddable_ramp"),
        ({"scheduling": {"warm_share": 2.0}}, "HEADRACE_ROUTER_SCHEDULING: "),
        ({"scheduling": {"short_slice": 1.0}}, "HEADRACE_ROUTER_SCHEDULING: placement.short_slice"),
    ],
)
def test_a_contradiction_is_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        scheduling.policy_settings(RouterSettings(**given))
    assert any(line.startswith(named) for line in str(caught.value).splitlines()), str(caught.value)


def test_contradictions_at_once_have_a_line_each() -> None:
    flags = ["--limits.queued-bytes", "2048", "--limits.request-bytes", "4096", "--session.stale-s", "2"]
    with pytest.raises(SettingsError) as caught:
        RouterSettings.load(flags)
    assert [line.partition(" (")[0] for line in str(caught.value).splitlines()] == [
        "HEADRACE_ROUTER_LIMITS",
        "HEADRACE_ROUTER_LIMITS",
        "HEADRACE_ROUTER_SESSION",
    ]


def test_a_ramp_can_be_given_as_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_ROUTER_SCHEDULING", '{"sheddable_ramp": "0.8,1.2"}')
    assert RouterSettings.load([]).scheduling.sheddable_ramp == (0.8, 1.2)
    assert RouterSettings.load(["--scheduling.sheddable-ramp", "0.7,1.3"]).scheduling.sheddable_ramp == (
        0.7,
        1.3,
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--session.heartbeat-s", "1.2"], "heartbeat_s 1.2, stale_s 1 and lost_s 1.5 must rise"),
        (["--session.stale-s", "2"], "stale_s 2 and lost_s 1.5 must rise"),
        (["--session.heartbeat-s", "0.0001"], "greater than or equal to 0.001"),
        (["--session.orphan-hold-s", "1e7"], "less than or equal to 86400"),
        (["--session.resume-grace-s", "1e7"], "less than or equal to 86400"),
        (["--failover.return-s", "5"], "return_s 5 is not less than the 5 s for which workers keep requests"),
        (
            ["--session.resume-grace-s", "0.1", "--session.orphan-hold-s", "0"],
            "return_s 0.1 is not less than the 0.1 s",
        ),
        (["--limits.queued-bytes", "4096"], "queued_bytes 4096 is less than request_bytes 4194304"),
        (["--limits.request-bytes", "2048"], "grammar_bytes 32768 is more than request_bytes 2048"),
    ],
)
def test_limits_and_times_that_contradict_are_refused_in_one_line(flags: list[str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RouterSettings.load(flags)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_contradiction_has_its_line() -> None:
    wrong = RouterSettings(interactive={"share": -1.0}, scheduling={"output_weight": -2.0})
    with pytest.raises(SettingsError) as caught:
        scheduling.policy_settings(wrong)
    assert len(str(caught.value).splitlines()) >= 2


def test_a_router_that_cannot_hold_its_targets_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "mesh.secret").write_text("ab" * 32)
    wrong = ["--standard.ttft-s", "0.1", "--standard.tpot-s", "0.05"]
    command = [
        sys.executable,
        "-m",
        "services.router",
        "--mesh-secret-file",
        str(tmp_path / "mesh.secret"),
        *wrong,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert "standard.ttft_s" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_tenants_targets_come_before_the_deployments() -> None:
    settings = RouterSettings().standard
    own = Tenant(name="a", standard={"ttft_s": 7.0})  # type: ignore[arg-type]
    assert scheduling.targets(settings, LatencyClass.STANDARD, own) == (7.0, 0.08)
    assert scheduling.targets(settings, LatencyClass.STANDARD, Tenant(name="b")) == (2.0, 0.08)
    batch = RouterSettings().batch
    assert scheduling.targets(batch, LatencyClass.BATCH, own) == (None, None)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("weight = -1", "a: weight: "),
        ("kv_share = 2", "a: kv_share: "),
        ("interactive.ttft_s = 0.01\ninteractive.tpot_s = 0.04", "tpot_s 0.04 is longer than ttft_s 0.01"),
        ("interactive.ttft_s = 3.0\nstandard.ttft_s = 1.0", "standard.ttft_s 1 is shorter"),
        ('max_class = "turbo"', "a: max_class: "),
    ],
)
def test_a_tenant_that_cannot_be_is_refused_in_one_line(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "tenants.toml").write_text(f"[tenants.a]\n{table}\n")
    with pytest.raises(ValueError, match=r"tenants\.toml") as caught:
        load(None, tmp_path / "tenants.toml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
