"""The cache builds a model once, whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.models import ModelUnavailable
from services.common.models.manifest import has_same_content
from services.common.models.store import built_once, default_cache_dir

BUILDER = """
import os, signal, sys
from pathlib import Path
from services.common.models.store import built_once

cache, log, dies = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "dies"

def build(target):
    with log.open("a") as file:
        file.write("built\\n")
    (target / "weights").write_bytes(bytes(1000))
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)

print(built_once(cache, "model", "a test", build))
"""


class Counted:
    """A build that counts how often it runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, target: Path) -> None:
        self.runs += 1
        (target / "weights").write_bytes(b"1" * 100)
        (target / "config.json").write_text("{}")


def start(cache: Path, log: Path, how: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", BUILDER, str(cache), str(log), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def touch(path: Path) -> None:
    later = path.stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(later, later))


def test_a_second_use_finds_what_the_first_built(tmp_path: Path) -> None:
    build = Counted()
    place = built_once(tmp_path, "model", "a test", build)
    assert built_once(tmp_path, "model", "a test", build) == place
    assert build.runs == 1


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(tmp_path / "cache", log, "lives") for _ in range(4)]
    places = {process.communicate()[0] for process in processes}
    assert len(places) == 1
    assert [process.returncode for process in processes] == [0] * 4
    assert log.read_text() == "built\n"


def test_what_a_killed_build_left_is_removed_and_built_anew(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    start(cache, tmp_path / "log", "dies").communicate()
    assert list((cache / "models").glob(".*.partial"))
    assert not (cache / "models" / "model").exists()
    build = Counted()
    built_once(cache, "model", "a test", build)
    assert build.runs == 1
    assert not list((cache / "models").glob(".*.partial"))


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        (target / "weights").write_bytes(b"1")
        raise KeyError

    with pytest.raises(KeyError):
        built_once(tmp_path, "model", "a test", fail)
    assert not [path for path in (tmp_path / "models").iterdir() if path.is_dir()]


@pytest.mark.parametrize("content", [b"2" * 100, b"1" * 99, b""])
def test_a_corrupted_file_is_noticed_and_the_model_built_anew(tmp_path: Path, content: bytes) -> None:
    build = Counted()
    place = built_once(tmp_path, "model", "a test", build)
    (place / "weights").write_bytes(content)
    touch(place / "weights")
    assert built_once(tmp_path, "model", "a test", build) == place
    assert build.runs == 2
    assert (place / "weights").read_bytes() == b"1" * 100


@pytest.mark.parametrize("name", ["weights", "headrace-manifest.json"])
def test_a_missing_file_is_noticed(tmp_path: Path, name: str) -> None:
    build = Counted()
    (built_once(tmp_path, "model", "a test", build) / name).unlink()
    built_once(tmp_path, "model", "a test", build)
    assert build.runs == 2


@pytest.mark.parametrize("text", ["", "[]", '{"source": "", "files": {"weights": {}}}', '{"files": 3}'])
def test_a_broken_manifest_is_no_manifest(tmp_path: Path, text: str) -> None:
    build = Counted()
    (built_once(tmp_path, "model", "a test", build) / "headrace-manifest.json").write_text(text)
    built_once(tmp_path, "model", "a test", build)
    assert build.runs == 2


def test_a_copy_with_other_times_and_the_same_content_is_kept(tmp_path: Path) -> None:
    build = Counted()
    place = built_once(tmp_path, "model", "a test", build)
    touch(place / "weights")
    built_once(tmp_path, "model", "a test", build)
    assert build.runs == 1


def test_the_full_check_notices_what_size_and_time_hide(tmp_path: Path) -> None:
    place = built_once(tmp_path, "model", "a test", Counted())
    status = (place / "weights").stat()
    assert has_same_content(place)
    (place / "weights").write_bytes(b"2" * 100)
    os.utime(place / "weights", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not has_same_content(place)


def test_a_cache_that_cannot_be_written_is_told_with_what_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelUnavailable, match="HEADRACE_CACHE_DIR"):
        built_once(tmp_path / "file", "model", "a test", Counted())


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HEADRACE_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/headrace")),
        ({}, Path.home() / ".cache" / "headrace"),
    ],
)
def test_the_cache_is_where_the_environment_says(environment: dict[str, str], expected: Path) -> None:
    assert default_cache_dir(environment) == expected
