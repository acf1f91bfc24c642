from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from services.common.lifecycle import NotServing, Serving
from services.common.models import ModelDirectory
from services.common.settings import SettingsError
from services.worker.engine.settings import EngineSettings
from services.worker.health import AttachedHealth
from services.worker.settings import WorkerSettings


def test_every_choice_of_the_engine_is_a_flag_and_reaches_it(tmp_path: Path) -> None:
    flags = ["--dtype=float32", "--kv-blocks=99", "--max-context=512", "--threads=1", "--max-seqs=3"]
    settings = WorkerSettings.load([*flags, "--max-chunk=32", "--device=cpu"])
    engine = settings.engine_settings(ModelDirectory(tmp_path, "tiny"))
    assert (engine.model, engine.model_name, engine.dtype) == (tmp_path, "tiny", "float32")
    assert (engine.kv_blocks, engine.max_context, engine.threads, engine.max_seqs) == (99, 512, 1, 3)
    assert (engine.scheduler.max_chunk, engine.device) == (32, "cpu")


def test_defaults_are_the_engines_own(tmp_path: Path) -> None:
    engine = WorkerSettings.load([]).engine_settings(ModelDirectory(tmp_path, "tiny"))
    assert engine == dataclasses.replace(EngineSettings(model=tmp_path), model_name="tiny")


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--engine=abacus", "HEADRACE_WORKER_ENGINE (--engine) = 'abacus'"),
        ("--kv-blocks=0", "HEADRACE_WORKER_KV_BLOCKS (--kv-blocks) = '0'"),
        ("--device=tpu", "HEADRACE_WORKER_DEVICE (--device) = 'tpu'"),
        ("--routers=nowhere", "HEADRACE_WORKER_ROUTERS (--routers)"),
        ("--labels=pool", "HEADRACE_WORKER_LABELS (--labels)"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(flag: str, named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        WorkerSettings.load([flag])
    assert str(caught.value).startswith(named)
    assert "\n" not in str(caught.value)


def test_lists_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_WORKER_ROUTERS", "a:1, b:2")
    monkeypatch.setenv("HEADRACE_WORKER_LABELS", "region=eu,pool=chat")
    settings = WorkerSettings.load([])
    assert settings.routers == ("a:1", "b:2")
    assert settings.labels == {"region": "eu", "pool": "chat"}


def test_a_worker_is_named_after_host_and_gpu_unless_it_was_named() -> None:
    assert WorkerSettings(worker_id="w").name("GPU-1") == "w"
    assert WorkerSettings().name("GPU-12345678-9abc").endswith("-GPU-12345678")
    assert WorkerSettings().name(None) != WorkerSettings().name("GPU-1")


async def test_health_needs_both_the_process_and_a_router() -> None:
    health = AttachedHealth()
    seen = []
    for change in (
        health.set(Serving),
        health.attached(True),
        health.attached(False),
        health.attached(True),
        health.set(NotServing),
    ):
        await change
        seen.append(health.servicer._statuses[""])
    assert seen == [NotServing, Serving, NotServing, Serving, NotServing]


def test_what_the_engine_says_names_the_variables_to_set() -> None:
    said = "this device has no room; lower max_context or raise kv_memory_bytes"
    assert WorkerSettings().with_variables(said) == (
        "this device has no room; lower HEADRACE_WORKER_MAX_CONTEXT or raise HEADRACE_WORKER_KV_MEMORY_BYTES"
    )
