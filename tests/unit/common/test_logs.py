"""What a service writes to its log beside its own events."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging
from grpc._cython import cygrpc
from services.common import logs
logs.configure("test", form="json")
of_grpc = logging.getLogger("grpc._cython.cygrpc")
for error in (cygrpc.ExecuteBatchError("the caller is gone"), RuntimeError("a fault of ours")):
    try:
        raise error
    except Exception:
        of_grpc.exception("raised by a method")
"""


def test_that_a_caller_was_gone_before_its_answer_was_written_fills_no_log() -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=60
    ).stderr
    assert "a fault of ours" in said
    assert "the caller is gone" not in said
