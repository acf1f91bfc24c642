"""Claims of a router that wait for their answers: each is put together when there is room for it.

After a router was lost as many come at once as it had streams, and an answer may be ten thousand times as
large as its claim. So it is claims that wait, and they are few bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from headrace.v1 import session_pb2

ANSWERS_BYTES = 2 << 10  # in one frame, but for one large piece
CLAIM_BYTES = 128  # of one, at most
MOST_CLAIMS = 1 << 16

Answer = Callable[[session_pb2.Claim, float], Sequence[session_pb2.Claimed]]
"""What is known of a claimed request, in pieces; the time is when the claim came."""


def nothing_known(claim: session_pb2.Claim, _: float) -> Sequence[session_pb2.Claimed]:
    """The answer of who has no requests."""
    return [session_pb2.Claimed(claim_key=claim.claim_key, last=True)]


class Answers:
    """Of one session, in the order of the claims."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._waiting: deque[tuple[session_pb2.Claim, float]] = deque()
        self._pieces: deque[session_pb2.Claimed] = deque()  # of the answer that is being told

    @property
    def empty(self) -> bool:
        """Whether every claim is answered."""
        return not (self._pieces or self._waiting)

    def add(self, claim: session_pb2.Claim, now: float) -> bool:
        """One more; False when no router would send that, or so many."""
        if len(self._waiting) >= MOST_CLAIMS or claim.ByteSize() > CLAIM_BYTES:
            return False
        self._waiting.append((claim, now))
        return True

    def fill(self, frame: session_pb2.WorkerFrame) -> int:
        """Tells some; a large piece has its frame for itself. Returns how many bytes that is."""
        size = 0
        while size < ANSWERS_BYTES and self._has_piece():
            piece = self._pieces[0].ByteSize()
            if size and piece > ANSWERS_BYTES:
                break
            frame.claimed.append(self._pieces.popleft())
            size += piece
        return size

    def _has_piece(self) -> bool:
        if not self._pieces and self._waiting:
            self._pieces.extend(self._answer(*self._waiting.popleft()))
        return bool(self._pieces)
