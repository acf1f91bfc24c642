"""`python -m services.tokenizer.text.process FD`: one process of the pool.

It encodes what comes over the inherited socket until the socket closes. It imports no gRPC, cannot outgrow
its memory limit, writes no core dump (prompts would be in it), and ends with its pool whatever it does.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from services.common.leash import die_with
from services.tokenizer.text.errors import TextError
from services.tokenizer.text.items import ItemEncoder, TextSpec
from services.tokenizer.text.wire import LENGTH, Refusal, Reply, Request, pack_reply


class ProcessSpec(NamedTuple):
    """What a process is told first."""

    text: TextSpec
    memory_limit_bytes: int


def main(descriptor: int) -> int:
    """Serve the socket until the other end closes it."""
    die_with(os.getppid(), signal.SIGKILL)  # one that died before closes the socket
    for asked in (signal.SIGINT, signal.SIGTERM):  # may reach the whole group; the pool decides
        signal.signal(asked, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as pool:
        spec: ProcessSpec = _receive(pool)
        encoder = _loaded(spec.text)
        if isinstance(encoder, Refusal):
            pool.sendall(pack_reply(encoder))
            return 1
        _limit(spec.memory_limit_bytes)
        pool.sendall(pack_reply(Reply([], encoder.statistics())))
        try:
            _serve(pool, encoder)
        except (EOFError, ConnectionError):
            return 0  # the pool is gone or wants no more


def _serve(pool: socket.socket, encoder: ItemEncoder) -> NoReturn:
    while True:
        request: Request = _receive(pool)
        signal.setitimer(signal.ITIMER_REAL, request.limit_s)
        outcomes = [encoder.outcome(item) for item in request.items]
        pool.sendall(pack_reply(Reply(outcomes, encoder.statistics())))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _loaded(spec: TextSpec) -> ItemEncoder | Refusal:
    try:
        return ItemEncoder(spec)
    except TextError as error:
        return Refusal(str(error))


def _limit(memory_bytes: int) -> None:
    """Bound what may be allocated from now on, and keep prompts out of core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard_bytes = resource.getrlimit(resource.RLIMIT_DATA)
    wanted_bytes = _data_bytes() + memory_bytes
    if hard_bytes == resource.RLIM_INFINITY or wanted_bytes < hard_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted_bytes, hard_bytes))


def _data_bytes() -> int:
    """What counts towards the limit already: kitoken's allocator alone reserves 1 GiB of addresses."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


def _receive(pool: socket.socket) -> Any:
    (size,) = LENGTH.unpack(_exactly(pool, LENGTH.size))
    return pickle.loads(_exactly(pool, size))


def _exactly(pool: socket.socket, size: int) -> bytearray:
    body = bytearray(size)
    view = memoryview(body)
    while view:
        received = pool.recv_into(view)
        if received == 0:
            raise EOFError
        view = view[received:]
    return body


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
