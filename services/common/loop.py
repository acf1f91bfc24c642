"""The event loop of a service: uvloop, woken once for all that gRPC has ready.

gRPC's own thread queues what is done and writes a byte to a socket; its reader in the loop takes one byte and
hands on everything that is queued. So of many things done at once each but the first would wake the loop for
nothing, which costs more than a written token does. Here the bytes of one burst are taken together.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import uvloop

_MOST = 4096
_STEP_BACK = 10
"""Of niceness."""


class Loop(uvloop.Loop):
    """uvloop that knows gRPC's reader; all other readers are as they were."""

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
        """As `asyncio` has it."""
        if isinstance(fd, socket.socket) and is_grpc_reader(callback):
            super().add_reader(fd, _taking_bursts(fd, callback), *args)
        else:
            super().add_reader(fd, callback, *args)


def is_grpc_reader(callback: Callable[..., Any]) -> bool:
    """Whether it is how gRPC hands completions over: `PollerCompletionQueue._handle_events`, maybe bound."""
    return getattr(getattr(callback, "func", callback), "__name__", "") == "_handle_events"


def _taking_bursts(waker: socket.socket, handle: Callable[..., Any]) -> Callable[..., None]:
    """The reader without the wake-ups for what it has handed on.

    NOTE: bytes are taken before the queue is looked at: each was written after its event was queued, so none
    is lost. One byte is left: `handle` reads one.
    """

    def wake(*args: Any) -> None:
        waiting = len(waker.recv(_MOST, socket.MSG_PEEK))
        if waiting > 1:
            waker.recv(waiting - 1)
        handle(*args)

    return wake


def let_the_loop_go_first() -> None:
    """Lets gRPC's thread not interrupt the loop on a core that both share: for who writes much at once.

    Else it stops the loop at every message, to tell it that this one was written. With a core of its own it
    is as quick as before; beside others that compute on its core it has to wait for them. To be called when
    there is a server or a channel.
    """
    if sys.platform != "linux":  # elsewhere threads have no niceness of their own
        return
    niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + _STEP_BACK, 19)
    for thread in threading.enumerate():
        if "_poll_wrapper" in thread.name and thread.native_id is not None:
            os.setpriority(os.PRIO_PROCESS, thread.native_id, niceness)
