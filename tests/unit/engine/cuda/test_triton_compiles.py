"""What the interpreter hides: types, shapes and memory that a Hopper card's compiler refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED_MEMORY = 227 * 1024  # bytes a program may have on compute capability 9.0


@pytest.fixture(scope="module")
def compiled(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of every kernel."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-m", "tests.support.compiled_kernels"]
    done = subprocess.run(
        command, cwd=project_root, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_for_hopper(compiled: list[dict[str, Any]]) -> None:
    rowwise, sampling = (
        {"_add_norm", "_place", "_gate"},
        {"_prepare", "_weigh", "_keep", "_search", "_draw", "_pick"},
    )
    assert {each["kernel"] for each in compiled} == rowwise | sampling | {
        "_attend",
        "_reduce",
        "_rank",
        "_merge",
    }


def test_kernels_fit_the_shared_memory_of_a_program(compiled: list[dict[str, Any]]) -> None:
    assert max(each["shared"] for each in compiled) <= SHARED_MEMORY


def test_attention_uses_tensor_cores_and_keeps_its_sums_in_registers(compiled: list[dict[str, Any]]) -> None:
    attention = [each for each in compiled if each["kernel"] == "_attend"]
    assert all(each["tensor_cores"] for each in attention)
    fast = [each for each in attention if each["options"]["enable_fp_fusion"]]
    assert max(each["stack"] for each in fast[:6]) == 0  # all but the last ones, in fp32
