"""The worker's end of the engine's pipe hears each message once, however its bytes come."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.engine.pipe import EnginePipe
from services.worker.engine.report import Progress, TokenReport
from services.worker.engine.wire import packed
from services.worker.scheduler.events import Outputs


def framed(message: object, *, long: bool = False) -> bytes:
    body = packed(message)
    return (struct.pack("!iQ", -1, len(body)) if long else struct.pack("!i", len(body))) + body


def tokens(step: int) -> TokenReport:
    columns = Outputs(np.array([1], np.int64), np.array([step], np.int32), np.array([step], np.int32))
    return TokenReport(columns, Progress(step, True, 0.0, 1, 1, 0.01))


@given(cuts=st.sets(st.integers(0, 600)), long=st.booleans())
def test_messages_are_heard_in_order_wherever_their_bytes_are_cut(cuts: set[int], long: bool) -> None:
    heard: list[Any] = []
    pipe = EnginePipe(heard.append, lambda: None)
    data = b"".join([framed("first"), framed(tokens(2), long=long), framed("x" * 300), framed(tokens(4))])
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for begin, end in pairwise(edges):
        pipe.data_received(data[begin:end])
    assert [each if isinstance(each, str) else each.progress.finished_steps for each in heard] == [
        "first",
        2,
        "x" * 300,
        4,
    ]


@pytest.mark.parametrize("left", [1, 3, 4, 20])
def test_a_message_that_is_not_whole_is_not_heard(left: int) -> None:
    heard: list[Any] = []
    pipe = EnginePipe(heard.append, lambda: None)
    pipe.data_received(framed(tokens(1))[:-left])
    assert not heard
