"""Who has heard what: the router of this worker's frames, and the engine of the router's."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Self

from services.worker.session.job import Job

MOST_RECEIPTS = 64  # beyond that the last one takes in what follows: output is kept longer, never lost


class Receipt(NamedTuple):
    """What frames told of jobs, as far as it frees anything here once the router has it."""

    upto: dict[Job, int]  # all log-probabilities before this index
    ended: list[Job]  # whose end they told

    def add(self, later: Self) -> None:
        """With what a later frame told."""
        self.upto.update(later.upto)
        self.ended.extend(later.ended)

    def forget(self, job: Job) -> None:
        """What another session goes on with."""
        self.upto.pop(job, None)
        if job in self.ended:
            self.ended.remove(job)


class Receipts:
    """Of frames that the router has not acknowledged; those that free nothing are not kept."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Receipt]] = deque()  # by frame

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, frame: int, receipt: Receipt) -> None:
        """A frame was written."""
        if not (receipt.upto or receipt.ended):
            return
        if len(self._waiting) == MOST_RECEIPTS:
            earlier = self._waiting.pop()[1]
            earlier.add(receipt)
            receipt = earlier
        self._waiting.append((frame, receipt))

    def take(self, frame: int) -> Receipt:
        """All that frames up to this one told."""
        told = Receipt({}, [])
        while self._waiting and self._waiting[0][0] <= frame:
            told.add(self._waiting.popleft()[1])
        return told

    def forget(self, job: Job) -> None:
        """What another session goes on with."""
        for _, receipt in self._waiting:
            receipt.forget(job)


class Handled:
    """Router frames that the engine has not dealt with yet.

    Args:
        acknowledged: the last one that it has.
    """

    def __init__(self, acknowledged: int) -> None:
        self._acknowledged = acknowledged
        self._waiting: deque[tuple[int, int]] = deque()  # router frame, last engine command then

    def add(self, frame: int, last_command: int) -> None:
        """A frame was handled; those without commands of the engine's add nothing to remember."""
        if self._waiting and self._waiting[-1][1] == last_command:
            self._waiting.pop()
        self._waiting.append((frame, last_command))

    def upto(self, command: int) -> int:
        """The last router frame whose commands are done when this one is."""
        while self._waiting and self._waiting[0][1] <= command:
            self._acknowledged = self._waiting.popleft()[0]
        return self._acknowledged
