"""Compiled kernels are kept where nobody else can write: what lies there is run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.worker.engine.torch.compiled import keeping
from services.worker.engine.torch.compiled.jit import FLOAT32
from services.worker.engine.torch.compiled.rowwise import compile_gate


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that others can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="headrace-test-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    keeping.kept_in.cache_clear()
    yield
    keeping.kept_in.cache_clear()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HEADRACE_KERNEL_DIR": "/k", "HEADRACE_CACHE_DIR": "/models", "XDG_CACHE_HOME": "/b"}, Path("/k")),
        ({"HEADRACE_CACHE_DIR": "/models", "XDG_CACHE_HOME": "/b"}, Path("/b/headrace/kernels")),
        ({"HEADRACE_CACHE_DIR": "/models"}, Path.home() / ".cache/headrace/kernels"),
    ],
)
def test_kernels_lie_apart_from_models(environment: dict[str, str], expected: Path) -> None:
    assert keeping.kernel_dir(environment) == expected


def test_what_is_made_for_kernels_is_for_its_owner_alone(
    open_to_all: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(keeping.KERNELS_VARIABLE, str(open_to_all / "new" / "kernels"))
    folder = keeping.kept_in()
    assert folder is not None
    made = (folder, folder.parent, folder.parent.parent)
    assert [each.stat().st_mode & 0o777 for each in made] == [0o700] * 3


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_directory_that_others_can_write_keeps_no_kernels(
    open_to_all: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: int
) -> None:
    folder = open_to_all / keeping._edition()
    folder.mkdir()
    folder.chmod(mode)
    monkeypatch.setenv(keeping.KERNELS_VARIABLE, str(open_to_all))
    assert keeping.kept_in() is None
    assert f"others can write {folder}" in capsys.readouterr().err


@pytest.mark.parametrize(("mode", "found"), [(0o777, True), (0o1777, False), (0o700, False), (0o755, False)])
def test_a_directory_above_counts_unless_it_protects_what_lies_there(
    open_to_all: Path, mode: int, found: bool
) -> None:
    above = open_to_all / "above"
    folder = above / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    above.chmod(mode)
    assert keeping.writable_by_others(folder) == (above if found else None)


def test_a_directory_of_somebody_else_keeps_no_kernels(
    open_to_all: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keeping.writable_by_others(open_to_all) is None
    monkeypatch.setattr(keeping.os, "geteuid", lambda: open_to_all.stat().st_uid + 1)
    assert keeping.writable_by_others(open_to_all) is not None


def test_kernels_are_compiled_where_none_can_be_kept(
    open_to_all: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (open_to_all / "file").touch()
    monkeypatch.setenv(keeping.KERNELS_VARIABLE, str(open_to_all / "file"))
    assert keeping.kept_in() is None
    assert "compiled at each start" in capsys.readouterr().err


def _compile() -> int:
    """Addresses of a kernel's code are not 0."""
    return int(compile_gate(FLOAT32, 72).address)


def test_a_damaged_kernel_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(keeping.KERNELS_VARIABLE, str(tmp_path))
    assert _compile()
    kept = [path for path in tmp_path.rglob("*.nb*") if path.is_file()]
    assert kept
    for damage in (b"", b"nonsense"):
        for path in kept:
            path.write_bytes(damage)
        assert _compile()
        assert "compiling again what is damaged" in capsys.readouterr().err
    assert all(path.stat().st_size > 100 for path in kept)


def test_kernels_of_other_numbers_share_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keeping.KERNELS_VARIABLE, str(tmp_path))
    for width in (72, 80):
        compile_gate(FLOAT32, width)
    assert len({path.parent for path in tmp_path.rglob("*.nbi")}) == 2


def test_a_disk_that_is_full_under_kernels_and_log_keeps_no_engine_from_starting(tmp_path: Path) -> None:
    (tmp_path / "full").touch()
    program = "from services.worker.engine.torch.compiled.keeping import kept_in; print(kept_in())"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "HEADRACE_KERNEL_DIR": str(tmp_path / "full" / "kernels")},
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            timeout=60,
        )
    assert done.stdout == "None\n"
