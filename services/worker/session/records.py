"""Requests that a router may claim: those that run here, and for a while those that have ended. No I/O.

A client's stream outlives its router, so what a client may lack is kept beyond what its router acknowledged:
submission, output ids, and how it ended. What is kept after the end is bounded (ended.py).
"""

from __future__ import annotations

from typing import NamedTuple

from headrace.v1 import session_pb2

from services.worker.session.ended import Ended
from services.worker.session.home import Home
from services.worker.session.job import Job

DEFAULT_HOLD_S = 5.0
PIECE_IDS = 8192  # at most 5 bytes each: a piece keeps to 48 KiB
PIECE_POSITIONS = 96  # of up to 20 candidates: about 26 KiB


class Record(NamedTuple):
    """A submission, when it came (monotonic seconds), and the session that has it, open or not."""

    job: Job
    submit: session_pb2.Submit
    at_s: float
    owner: Home

    @property
    def ids(self) -> int:
        """Ids that it keeps in memory."""
        return len(self.submit.prompt_ids) + self.job.made


class Records:
    """Requests by the key under which they may be claimed; each key names the latest one."""

    def __init__(self, ended: Ended | None = None) -> None:
        self.hold_s = DEFAULT_HOLD_S
        """How long what has ended is kept; routers say it."""
        self._by_key: dict[bytes, Record] = {}
        self._ended = Ended() if ended is None else ended

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, record: Record) -> Job | None:
        """A request begins; returns the one that had its key until now. Those without a key are not kept."""
        key = record.submit.claim_key
        if not key:
            return None
        earlier = self._forget(key)
        self._by_key[key] = record
        return earlier.job if earlier else None

    def move(self, key: bytes, owner: Home) -> None:
        """Another session has the request from now on."""
        self._by_key[key] = self._by_key[key]._replace(owner=owner)

    def ended(self, job: Job, now: float) -> None:
        """A request is over here: it is kept for a while yet."""
        record = self._by_key.get(job.claim_key)
        if record is None or record.job is not job or job.claim_key in self._ended:
            return
        self._ended.add(job.claim_key, record.submit.tenant_tag, record.ids, now + self.hold_s)
        while (key := self._ended.excess()) is not None:
            self._forget(key)

    def expire(self, now: float) -> None:
        """Forgets what ended long enough ago."""
        while (key := self._ended.due(now)) is not None:
            self._forget(key)

    def find(self, key: bytes) -> Record | None:
        """The request of a key; None when there is none, or none any more."""
        return self._by_key.get(key)

    def _forget(self, key: bytes) -> Record | None:
        self._ended.discard(key)
        return self._by_key.pop(key, None)


def answer(
    record: Record | None, claim: session_pb2.Claim, now: float, *, orphaned: bool
) -> list[session_pb2.Claimed]:
    """What is known of a claimed request, in pieces of bounded size; `orphaned`: its session is broken."""
    if record is None:
        return [session_pb2.Claimed(claim_key=claim.claim_key, last=True)]
    pieces = [_head(record, now, orphaned), *_ids(record), *_logprobs(record.job, claim.next_index)]
    for piece in pieces:
        piece.claim_key, piece.found = claim.claim_key, True
    pieces[-1].last = True
    return pieces


def _head(record: Record, now: float, orphaned: bool) -> session_pb2.Claimed:
    job = record.job
    end = job.end if not job.returned else _over_here()
    return session_pb2.Claimed(
        submit=_as_of_now(record, now),
        handle=job.handle,
        output_tokens=job.made,
        end=end,
        orphaned=orphaned,
    )


def _over_here() -> session_pb2.SequenceEnd:
    """Of a request that was given back: as if it had been cancelled."""
    return session_pb2.SequenceEnd(reason=session_pb2.END_REASON_CANCELLED)


def _as_of_now(record: Record, now: float) -> session_pb2.Submit:
    passed_ms = max(0, int((now - record.at_s) * 1000))
    submit = session_pb2.Submit()
    submit.CopyFrom(record.submit)
    for name in ("slot", "prompt_ids", "delivered_ids"):
        submit.ClearField(name)
    submit.attempt = record.job.attempt
    submit.waited_ms += passed_ms
    if submit.HasField("remaining_ms"):
        submit.remaining_ms = max(1, submit.remaining_ms - passed_ms)
    return submit


def _ids(record: Record) -> list[session_pb2.Claimed]:
    prompt, output = record.submit.prompt_ids, record.job.ids
    found = []
    for first, ids in ((0, prompt), (len(prompt), output)):
        for start in range(0, len(ids), PIECE_IDS):
            part = list(ids[start : start + PIECE_IDS])
            found.append(session_pb2.Claimed(offset=first + start, ids=part))
    return found


def _logprobs(job: Job, next_index: int) -> list[session_pb2.Claimed]:
    first, logprobs = job.logprobs_from(next_index)
    return [
        session_pb2.Claimed(first_logprob=first + start, logprobs=logprobs[start : start + PIECE_POSITIONS])
        for start in range(0, len(logprobs), PIECE_POSITIONS)
    ]
