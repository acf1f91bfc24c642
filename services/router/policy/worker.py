"""What the scheduler knows of a worker."""

from __future__ import annotations

from dataclasses import dataclass

from services.router.policy.speed import StepModel
from services.router.policy.ticket import Cost, Ticket

BLOCK_TOKENS = 64


@dataclass(slots=True, kw_only=True)
class WorkerView:
    """A worker at one moment: its last report less what it has not acknowledged yet."""

    key: str
    model: str
    ready: bool
    credit: Cost
    sequences: int
    """Sequences that run or wait there; never less than this router has there."""
    waiting_tokens: int
    """Prompt tokens still to compute there."""
    max_sequences: int
    max_tokens: int
    """Most tokens of one sequence."""
    total_blocks: int
    labels: frozenset[tuple[str, str]] = frozenset()
    capabilities: frozenset[str] = frozenset()
    numerics: bytes = b""
    """Names the chain of digests under which it keeps blocks."""
    step_model: StepModel | None = None
    """None: it has not told yet."""
    free_blocks: int = 0
    """Blocks that hold nothing, or only what can be taken."""
    running_context: int = 0
    """Tokens that its decodes read, as far as known."""
    foreground_credit: Cost | None = None
    """What other classes than BATCH may have: also what batch work holds there. None: as `credit`."""
    batch_sequences: int = 0
    """Of `sequences`, batch work that gives way to other classes."""
    batch_waiting_tokens: int = 0
    """Of `waiting_tokens`, theirs."""

    def suits(self, ticket: Ticket) -> bool:
        """Whether it could ever run the request."""
        return (
            self.model == ticket.model
            and self.max_tokens >= ticket.total_tokens
            and ticket.labels <= self.labels
            and ticket.capabilities <= self.capabilities
            and self.key not in ticket.barred
        )

    @property
    def uniform(self) -> bool:
        """Whether it looks the same to batch work as to the foreground."""
        return not (self.batch_sequences or self.batch_waiting_tokens) and (
            self.foreground_credit is None or self.foreground_credit == self.credit
        )

    def credit_for(self, foreground: bool) -> Cost:
        """The credit that a request of another class than BATCH, or of BATCH, has."""
        if foreground and self.foreground_credit is not None:
            return self.foreground_credit
        return self.credit

    def open(self, foreground: bool = False) -> bool:
        """Whether it takes anything now."""
        credit = self.credit_for(foreground)
        return self.ready and credit.sequences > 0 and credit.prefill_tokens > 0

    def affords(self, cost: Cost, foreground: bool = False) -> bool:
        """Whether its credit covers the request.

        A prompt larger than the whole window of prefill credit goes as soon as the window is open at all, and
        blocks are not counted while the worker is idle: else such requests would wait for ever.
        """
        fits = cost.kv_blocks <= self.credit_for(foreground).kv_blocks
        return self.open(foreground) and (fits or self.sequences == 0)

    def book(self, cost: Cost, foreground: bool = True) -> None:
        """Takes a request off the credit and onto the load; BATCH takes nothing of the foreground's."""
        self.credit = _less(self.credit, cost)
        if foreground and self.foreground_credit is not None:
            self.foreground_credit = _less(self.foreground_credit, cost)
        self.sequences += cost.sequences
        self.waiting_tokens += cost.prefill_tokens
        if not foreground:
            self.batch_sequences += cost.sequences
            self.batch_waiting_tokens += cost.prefill_tokens


def _less(credit: Cost, cost: Cost) -> Cost:
    return Cost(
        credit.prefill_tokens - cost.prefill_tokens,
        credit.sequences - cost.sequences,
        credit.kv_blocks - cost.kv_blocks,
    )
