"""The services' event loop takes what gRPC has ready at one time, and loses none of it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable

from services.common.loop import Loop
from tests.support.waiting import eventually

CALL = """
import asyncio
import os
import threading

import grpc
from services.common.loop import Loop, is_grpc_reader, let_the_loop_go_first
from services.common.transport import Listener, Tls, channel, listen, server

found = []

class Noting(Loop):
    def add_reader(self, fd, callback, *args):
        found.append(is_grpc_reader(callback))
        super().add_reader(fd, callback, *args)

async def echo(request, context):
    for _ in range(100):
        await context.write(request)

async def main():
    serving = server()
    handler = grpc.unary_stream_rpc_method_handler(echo)
    serving.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"m": handler}),))
    port = listen(serving, Listener("127.0.0.1:0"))
    await serving.start()
    let_the_loop_go_first()
    async with channel(f"127.0.0.1:{port}", Tls()) as connection:
        calls = [connection.unary_stream("/s/m")(b"x", timeout=20) for _ in range(20)]
        lengths = await asyncio.gather(*(length(call) for call in calls))
    await serving.stop(None)
    own, *others = (os.getpriority(os.PRIO_PROCESS, each.native_id) for each in threading.enumerate())
    print(any(found), sum(lengths), others == [min(own + 10, 19)])

async def length(call):
    return len([each async for each in call])

with asyncio.Runner(loop_factory=Noting) as runner:
    runner.run(main())
"""


def test_grpc_hands_completions_over_by_the_reader_and_the_thread_that_the_loop_knows() -> None:
    said = subprocess.run(
        [sys.executable, "-c", CALL], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.split() == ["True", "2000", "True"]


def _woken(name: str) -> list[int]:
    """What is left to read at each wake-up of a reader of this name that takes a byte, of a burst of five."""
    left: list[int] = []
    here, there = socket.socketpair()
    here.setblocking(False)
    there.send(b"11111")

    def read() -> None:
        here.recv(1)
        left.append(_waiting(here))

    read.__name__ = name
    with here, there, asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(_watch(here, read, left))
    return left


async def _watch(here: socket.socket, read: Callable[[], None], left: list[int]) -> None:
    loop = asyncio.get_running_loop()
    loop.add_reader(here, read)
    await eventually(lambda: left and not left[-1], "all is read")
    loop.remove_reader(here)


def _waiting(here: socket.socket) -> int:
    try:
        return len(here.recv(100, socket.MSG_PEEK))
    except BlockingIOError:
        return 0


def test_a_burst_wakes_grpcs_reader_once_and_any_other_once_a_byte() -> None:
    assert _woken("_handle_events") == [0]
    assert _woken("another") == [4, 3, 2, 1, 0]
