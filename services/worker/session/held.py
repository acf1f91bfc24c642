"""What a Hello tells of requests that a worker still keeps: as much as fits a frame, whatever their names.

The first are told with their names, as every router reads them; the rest as columns, a quarter of the size.
Of those that fit in neither the router knows nothing, so they go on elsewhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from headrace.v1 import session_pb2

from services.worker.session.job import Job

NAMED_BYTES = 24 << 10
COLUMNS_BYTES = 34 << 10
_NAME_BYTES = 4


def tell_held(hello: session_pb2.Hello, jobs: Iterable[Job]) -> None:
    """Adds them to a Hello."""
    size, waiting = 0, iter(jobs)
    for job in waiting:
        named = _named(job)
        size += named.ByteSize() + 4
        if size > NAMED_BYTES:
            _tell_columns(hello.held_more, [job, *waiting])
            return
        hello.held.append(named)


def _named(job: Job) -> session_pb2.HeldRequest:
    return session_pb2.HeldRequest(
        request_id=job.request_id,
        attempt=job.attempt,
        next_index=job.made,
        slot=job.slot,
        handle=job.handle,
    )


def _tell_columns(columns: session_pb2.HeldRequests, jobs: Iterable[Job]) -> None:
    size = 0
    for job in jobs:
        numbers = job.attempt, job.made, job.slot, job.handle
        size += _NAME_BYTES + sum(map(_varint_bytes, numbers))
        if size > COLUMNS_BYTES:
            return
        columns.names.append(zlib.crc32(job.request_id.encode()))
        columns.attempts.append(job.attempt)
        columns.next_indices.append(job.made)
        columns.slots.append(job.slot)
        columns.handles.append(job.handle)


def _varint_bytes(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)
