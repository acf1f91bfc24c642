"""New ids of many jobs as columns: a tenth of the cost of as many updates."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_BYTES = 28 << 10  # of a frame's columns
_JOB_BYTES = 20  # of a job with one id, at most
_ID_BYTES = 5  # of each further one


@dataclass(slots=True, eq=False)
class Columns:
    """What a frame tells. None of the lists is changed."""

    slots: list[int]
    attempts: list[int]
    indices: list[int]
    """Of the first new id of each."""
    token_ids: list[int]
    counts: list[int] = field(default_factory=list)
    """How many ids each has, one after the other; none: one each."""
    told: bool = False
    """Whether a frame has them."""


def columns_bytes(jobs: int, ids: int) -> int:
    """How many bytes columns have at most."""
    return _JOB_BYTES * jobs + _ID_BYTES * (ids - jobs)
