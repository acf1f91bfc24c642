"""Ports that are chosen before somebody listens there.

They lie below those that a kernel gives to connections and to whoever asks for any (32768 and up), so nobody
takes one in between. No two are the same, and each test process begins at a place of its own.
"""

from __future__ import annotations

import os
import socket
from itertools import cycle

_FIRST, _END = 12_000, 32_000
_START = _FIRST + os.getpid() * 101 % (_END - _FIRST)
_places = cycle([*range(_START, _END), *range(_FIRST, _START)])
_given: set[int] = set()


def free_port(run: int = 1, step: int = 1) -> int:
    """A port that nobody listens on, the first of `run` such ones, `step` apart."""
    while True:
        first = next(_places)
        ports = range(first, first + run * step, step)
        if _given.isdisjoint(ports) and all(map(_is_free, ports)):
            _given.update(ports)
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
