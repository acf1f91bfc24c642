"""What a service writes to its log beside its own events."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

PROGRAM = """
import logging
from google.protobuf.message import DecodeError
from grpc._cython import cygrpc
from services.common import logs
logs.configure("test", form="json")
of_grpc = logging.getLogger("grpc._cython.cygrpc")
gone, garbage = cygrpc.ExecuteBatchError("the caller is gone"), DecodeError("garbage")
for error in (gone, garbage, RuntimeError("a fault of ours")):
    try:
        raise error
    except Exception:
        of_grpc.exception("raised by a method")
"""


def test_what_callers_do_to_grpc_fills_no_log() -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=60
    ).stderr
    assert "a fault of ours" in said
    assert "the caller is gone" not in said
    assert "garbage" not in said


def test_a_line_is_written_at_once_so_that_processes_can_share_a_log() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # keeps writes apart
    with ours, theirs:
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from services.common import logs\nlogs.configure('test', form='json')\n"
                "for number in range(3): logs.get('x').info('said', number=number)",
            ],
            check=True,
            stderr=theirs.fileno(),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            timeout=60,
        )
        written = [ours.recv(1 << 16, socket.MSG_DONTWAIT) for _ in range(3)]
    assert [each[-1:] for each in written] == [b"\n"] * 3


WRITES_ON = """
from services.common import logs
logs.configure("test", form="json")
for number in range(300):
    logs.get("x").info("said", why="to fill what may be kept of it")
print("went on")
"""


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", WRITES_ON], stdout=subprocess.PIPE, stderr=full, text=True, timeout=60
        )
    assert done.stdout == "went on\n"


def test_a_log_that_nobody_reads_any_more_costs_lines_and_nothing_else() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", WRITES_ON], stdout=subprocess.PIPE, stderr=writer, text=True, timeout=60
        )
    finally:
        os.close(writer)
    assert done.stdout == "went on\n"
