"""What jobs and the desk need of the open session that they belong to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from headrace.v1 import session_pb2

from services.worker.engine.report import StepReport
from services.worker.session.columns import Columns

if TYPE_CHECKING:
    from services.worker.session.job import Job


class Home(Protocol):
    """An open session."""

    number: int
    router_id: str
    """Of log lines."""

    columns: bool
    """Whether its router reads columns."""

    counts: bool
    """Whether it reads such with more than one id each."""

    line: dict[int, Job]
    """Jobs with output or an end to send, by handle, in the order in which they got it."""

    news: asyncio.Event
    """Set by whoever adds to it."""

    def tell(self, columns: Columns) -> None:
        """Tells a step of a steady batch with the next frame. The one before must have been told."""

    def take_back(self) -> None:
        """Tells it not: its jobs are in the line."""

    def give_back(self, job: Job, reason: session_pb2.ReturnReason, message: str = "") -> None:
        """The job may run elsewhere."""

    def heard(self, report: StepReport, now: float) -> None:
        """The engine's state after its last step."""

    def lose(self, job: Job, slot: int, attempt: int) -> None:
        """Another session has taken over what was in this slot."""

    def drain(self, remaining_ms: int) -> None:
        """Says that the worker is leaving; gives back what has not begun."""
