"""Where compiled kernels are kept between starts: a directory that this user alone can write.

What lies there is unpickled and run, so whoever could write it would run code of theirs as this user.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from services.common.lines import say

KERNELS_VARIABLE = "HEADRACE_KERNEL_DIR"


def kernel_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """`$HEADRACE_KERNEL_DIR`, else `$XDG_CACHE_HOME/headrace/kernels`, else `~/.cache/headrace/kernels`.

    Never `$HEADRACE_CACHE_DIR`: models may be shared, with whom is for others to know. Raises RuntimeError
    where there is no home.
    """
    if own := environment.get(KERNELS_VARIABLE):
        return Path(own).expanduser()
    shared = environment.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "headrace" / "kernels"


@cache
def kept_in() -> Path | None:
    """The folder of this edition of the kernels; None, and a line that says why, where none can be kept."""
    try:
        folder = kernel_dir() / _edition()
        for each in reversed((folder, *folder.parents)):
            each.mkdir(mode=stat.S_IRWXU, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} is read-only")
        if (foreign := writable_by_others(folder)) is not None:
            raise PermissionError(f"others can write {foreign}; remove it or set {KERNELS_VARIABLE}")
    except (OSError, RuntimeError) as error:
        say(f"kernels are compiled at each start, they cannot be kept: {error}")
        return None
    return folder


def writable_by_others(folder: Path) -> Path | None:
    """The topmost directory, down to `folder`, in which another user could put something. Raises OSError."""
    folder, me = folder.resolve(), os.geteuid()
    for each in reversed((folder, *folder.parents)):
        found = each.stat()
        owner, mode = found.st_uid, found.st_mode
        if owner == me and not mode & (stat.S_IRWXG | stat.S_IRWXO):
            return None  # nobody else gets any further
        keeps_owners = mode & stat.S_ISVTX and each != folder  # as /tmp: names there stay their owners'
        if owner not in (me, 0) or (mode & (stat.S_IWGRP | stat.S_IWOTH) and not keeps_owners):
            return each
    return None if owner == me else folder


def _edition() -> str:
    """numba knows what it kept by one file alone; kernels are made of all that lie here."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(sources).hexdigest()[:16]
