"""What a worker tells a router after a step: the values of session.proto's WorkerFrame that policies use."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from services.worker.scheduler.budget import StepModelState
from services.worker.scheduler.events import Load, Served, Usage
from services.worker.session.books import Grant


class Ended(NamedTuple):
    """The end of an attempt, other than by a cancel."""

    handle: int
    usage: Usage
    done: bool  # False: its deadline has passed


class Blocks(NamedTuple):
    """Changes of the set of reusable blocks, in order."""

    first_number: int
    stored: list[bool]
    digests: list[bytes]  # 16 bytes each


NO_BLOCKS = Blocks(0, [], [])


class Frame(NamedTuple):
    """One frame of one session."""

    number: int
    acknowledged_command: int
    load: Load
    credit: Grant
    step_model: StepModelState
    first: list[int]  # attempts of this router that have their first token
    made: Counter[int]  # output tokens since the last, by attempt of this router
    ended: list[Ended]
    returned: list[int]
    blocks: Blocks
    served: dict[bytes, Served]  # by tag, of all routers, since the last
