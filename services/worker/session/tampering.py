"""What a simulated worker does to its frames on request, for tests of the routers that read them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from headrace.v1 import session_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFaults:
    """How a worker lies; off unless set."""

    drop_rate: float = 0.0  # part of its frames that are lost on the way
    load_factor: float = 1.0  # of what it says is running and waiting; below 1 it seems idler than it is
    random: random.Random = field(default_factory=random.Random)

    def tamper(self, frame: session_pb2.WorkerFrame) -> session_pb2.WorkerFrame | None:
        """What is written in the frame's place; None: nothing."""
        if self.drop_rate and self.random.random() < self.drop_rate:
            return None
        if self.load_factor != 1.0 and frame.HasField("load"):
            load = frame.load
            load.running = int(load.running * self.load_factor)
            load.waiting = int(load.waiting * self.load_factor)
            load.waiting_tokens = int(load.waiting_tokens * self.load_factor)
        return frame
