"""Runs a command that ends when its parent does: `python leash.py PARENT_PID COMMAND…`.

A process of its own, because the parent has threads (grpc's), and between fork and exec of such a process no
Python may run. Linux sends the signal when the parent dies in whatever way; elsewhere the parent alone ends
its children. Imports nothing of Headrace: it must cost no more than Python's own start.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def leashed(command: Sequence[str]) -> tuple[str, ...]:
    """The command line that runs `command` on a leash of this process."""
    return (sys.executable, "-I", "-S", __file__, str(os.getpid()), *command)


def die_with(parent: int, signal_number: int) -> None:
    """Has the kernel send this process a signal when its parent ends; on Linux alone."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != parent:  # it died before the leash was on
            os._exit(1)


def main(parent: int, command: list[str]) -> None:
    """Replaces this process by the command."""
    die_with(parent, signal.SIGTERM)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
