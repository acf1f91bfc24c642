"""What a worker reports and grants, corrected by what it cannot know of yet.

load = reported + submitted and not acknowledged        credit = granted - submitted and not acknowledged

There are two credits: what any request may have, and what one of another class than BATCH may have, which may
take the place of batch work. A foreground submission is charged to both, a batch one to the first alone.
"""

from __future__ import annotations

from headrace.v1 import session_pb2

from services.router.policy import Cost, WorkerView
from services.router.policy.speed import StepModel
from services.router.policy.worker import BLOCK_TOKENS
from services.router.sessions.ledger import Booking, Ledger


class Account:
    """Load and credit of one session."""

    def __init__(self) -> None:
        self.load = session_pb2.Load()
        self.credit = session_pb2.Credit()
        self.foreground_credit: session_pb2.Credit | None = None
        """None until one was told: batch work does not give way in the worker by itself."""
        self.step_model: StepModel | None = None
        self._uncredited = Ledger()
        self._uncredited_foreground = Ledger()
        self._unreported = Ledger()
        self._unreported_batch = Ledger()

    def book(self, booking: Booking) -> None:
        """Notes a submission."""
        self._uncredited.add(booking)
        if booking.foreground:
            self._uncredited_foreground.add(booking)
        self._unreported.add(booking)
        if not booking.foreground:
            self._unreported_batch.add(booking)

    def reported(self, frame: session_pb2.WorkerFrame) -> None:
        """Takes over what a frame tells; each part settles what it acknowledges, and only that part."""
        if frame.HasField("credit"):
            self.credit = frame.credit
            if frame.HasField("foreground_credit"):
                self.foreground_credit = frame.foreground_credit
            elif self.foreground_credit is not None:
                self.foreground_credit = frame.credit
            self._uncredited.acknowledge(frame.acknowledged_command)
            self._uncredited_foreground.acknowledge(frame.acknowledged_command)
        if frame.HasField("load"):
            self.load = frame.load
            self._unreported.acknowledge(frame.acknowledged_command)
            self._unreported_batch.acknowledge(frame.acknowledged_command)
        if frame.HasField("step_model"):
            told = frame.step_model
            self.step_model = StepModel(told.a, told.b, told.c, told.d, told.e, told.upper_quantile)

    def view(
        self,
        hello: session_pb2.Hello,
        *,
        labels: frozenset[tuple[str, str]],
        capabilities: frozenset[str],
        ready: bool,
        seats: int,
        chain: bytes,
    ) -> WorkerView:
        """The worker at this moment, as the scheduler sees it."""
        load, credit, spec = self.load, self.credit, hello.kv_spec
        return WorkerView(
            key=hello.worker_id,
            model=hello.model,
            ready=ready,
            credit=_left(credit, self._uncredited),
            sequences=max(load.running + load.waiting + self._unreported.sequences, seats),
            waiting_tokens=load.waiting_tokens + self._unreported.prefill_tokens,
            batch_sequences=load.batch_sequences + self._unreported_batch.sequences,
            batch_waiting_tokens=load.batch_waiting_tokens + self._unreported_batch.prefill_tokens,
            max_sequences=spec.max_sequences,
            max_tokens=spec.max_tokens,
            total_blocks=spec.blocks,
            labels=labels,
            capabilities=capabilities,
            numerics=chain,
            step_model=self.step_model,
            free_blocks=max(0, spec.blocks - load.kv_blocks_held),
            running_context=min(load.kv_blocks_held, spec.blocks) * BLOCK_TOKENS,
            foreground_credit=self._foreground_left(),
        )

    def _foreground_left(self) -> Cost | None:
        told = self.foreground_credit
        return None if told is None else _left(told, self._uncredited_foreground)


def _left(credit: session_pb2.Credit, used: Ledger) -> Cost:
    return Cost(
        credit.prefill_tokens - used.prefill_tokens,
        credit.sequences - used.sequences,
        credit.kv_blocks - used.kv_blocks,
    )
