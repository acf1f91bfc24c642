"""The directory of a run's sockets: its path is short, as these need; it goes with the run, or the next."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.cli.state import StateDir

_PREFIX = "headrace-"


@contextmanager
def socket_directory(state: StateDir) -> Iterator[Path]:
    """A new directory that only its owner may enter; removes what a run that was killed left.

    Hold the state directory meanwhile: the run that it tells of is dead then.
    """
    _remove_last(state)
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    state.sockets.write_text(str(path))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        state.sockets.unlink(missing_ok=True)


def _remove_last(state: StateDir) -> None:
    try:
        path = Path(state.sockets.read_text())
        found = path.lstat()
    except (OSError, ValueError):
        return
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and path.name.startswith(_PREFIX)
    if ours:  # who made it anew since is somebody else, or called it otherwise
        shutil.rmtree(path, ignore_errors=True)
