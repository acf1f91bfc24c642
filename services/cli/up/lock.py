"""One `headrace up` a state directory: a lock that the kernel releases when its owner dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from services.cli.errors import CliError
from services.cli.state import StateDir, read_running


@contextmanager
def only_one(state: StateDir) -> Iterator[None]:
    """Holds the directory. Raises CliError that says who holds it."""
    with state.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CliError(_taken(state)) from None
        try:
            yield
        finally:
            state.running.unlink(missing_ok=True)


def _taken(state: StateDir) -> str:
    running = read_running(state)
    who = f" (pid {running.pid}, {running.address})" if running else ""
    return f"another `headrace up`{who} uses {state.path}: stop it, or choose another --state-dir"
