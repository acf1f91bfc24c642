"""Kernels of products before a Hopper card's compiler: the interpreter hides what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED_MEMORY = 99 * 1024  # bytes a program may have on compute capability 8.9, the least that has fp8


@pytest.fixture(scope="module")
def compiled(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of every kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-m", "tests.support.compiled_products"]
    done = subprocess.run(
        command, cwd=project_root, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_and_keeps_its_sums_in_registers(compiled: list[dict[str, Any]]) -> None:
    *kernels, _ = compiled
    assert {each["kernel"] for each in kernels} == {"_multiply", "_quantise", "_rescale"}
    assert max(each["stack"] for each in kernels) == 0
    assert max(each["shared"] for each in kernels) <= SHARED_MEMORY


def test_tensor_cores_multiply_all_but_fp32(compiled: list[dict[str, Any]]) -> None:
    products = [each["tensor_cores"] for each in compiled if each["kernel"] == "_multiply"]
    assert products == [True] * 6 + [False] * 3


def test_all_batches_run_the_same_code(compiled: list[dict[str, Any]]) -> None:
    assert compiled[-1] == {"kernel": "same", "sources": 1}
