"""The user's cache directory: each model is built there once, whole or not at all.

A build happens in a temporary directory beside its place and is renamed into it, under a lock that the
kernel releases when its owner dies: processes that start together build once, and an interrupted build
leaves nothing that looks like a model.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from services.common.models.errors import ModelUnavailable
from services.common.models.manifest import is_whole, write_manifest

CACHE_VARIABLE = "HEADRACE_CACHE_DIR"


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """`$HEADRACE_CACHE_DIR`, else `$XDG_CACHE_HOME/headrace`, else `~/.cache/headrace`."""
    if own := environment.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    shared = environment.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "headrace"


def built_once(cache_dir: Path, key: str, source: str, build: Callable[[Path], None]) -> Path:
    """The directory `key` in the cache, built by `build(empty directory)` unless it is there and whole.

    Blocks while another process builds the same one. What `build` raises passes through.

    Raises:
        ModelUnavailable: the cache directory cannot be written.
    """
    place = cache_dir / "models" / key
    if is_whole(place):
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _lock(place.parent / f".{key}.lock"):
            if not is_whole(place):
                _build(place, source, build)
    except OSError as error:
        advice = f"free space there or set {CACHE_VARIABLE}"
        raise ModelUnavailable(f"cannot write the model cache {place.parent}: {error}; {advice}") from error
    return place


def _build(place: Path, source: str, build: Callable[[Path], None]) -> None:
    """Only under the lock, so whatever unfinished work of this key lies about is a dead process's."""
    for leftover in place.parent.glob(f".{place.name}.*.partial"):
        shutil.rmtree(leftover)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".partial", dir=place.parent))
    try:
        build(partial)
        write_manifest(partial, source)
        _flush(partial)
        if place.exists():
            shutil.rmtree(place)
        partial.chmod(0o755)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(directory: Path) -> None:
    """Have the files on the disk before their names are: a power cut must not leave whole-looking zeros."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
