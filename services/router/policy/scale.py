"""What a request costs on the workers as they are: asked again and again within a turn, worked out once.

A request is weighed when its tenant's budget is looked at, when it is let in, when it is queued and when it
goes. What was found holds for the same request while nothing changes of the workers or of what they keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from services.router.policy.fleet import Fleet
from services.router.policy.prediction import Estimate, Predictor
from services.router.policy.spread import Hits
from services.router.policy.ticket import Digests, Ticket
from services.router.policy.worker import BLOCK_TOKENS


class Weight(NamedTuple):
    """A request, on the worker that keeps most of its prompt."""

    uncached: int
    """Prompt tokens to compute."""
    estimate: Estimate
    opening: bool
    """Whether some worker could take it at once."""


class Scale:
    """Weighs the requests of one model; remembers the last one."""

    def __init__(self, fleet: Fleet, predictor: Predictor) -> None:
        self._fleet = fleet
        self._predictor = predictor
        self._chains: Mapping[bytes, Digests] | None = None
        self._hits = fleet.index.no_hits()
        self._index_changes = -1  # when it was looked up
        self._ticket: Ticket | None = None
        self._weight = Weight(0, Estimate(0.0, 0.0), False)
        self._fleet_changes = -1  # when it was weighed

    def hits(self, ticket: Ticket) -> Hits:
        """Blocks of its prompt that each worker keeps; not to be written to. [positions]"""
        chains, index = ticket.chains, self._fleet.index
        if chains is not self._chains or index.changes != self._index_changes:
            self._chains, self._index_changes, self._ticket = chains, index.changes, None
            self._hits = self._fleet.hits(chains) if chains else index.no_hits()
        return self._hits

    def weigh(self, ticket: Ticket) -> Weight:
        """What it costs at least, and whether it could start."""
        hits = self.hits(ticket)
        if not self._holds(ticket):
            uncached = self._uncached(ticket, hits)
            estimate = self._predictor.estimate(ticket, uncached)
            self._weight = Weight(uncached, estimate, self._fleet.opens(ticket))
            self._ticket, self._fleet_changes = ticket, self._fleet.changes
        return self._weight

    def estimate(self, ticket: Ticket, uncached: int) -> Estimate:
        """What it costs on a worker that keeps all of it but so many tokens."""
        if self._weight.uncached == uncached and self._holds(ticket):
            return self._weight.estimate
        return self._predictor.estimate(ticket, uncached)

    def _holds(self, ticket: Ticket) -> bool:
        """Whether the last weight is of this request and of the workers as they are."""
        return ticket is self._ticket and self._fleet.changes == self._fleet_changes

    def _uncached(self, ticket: Ticket, hits: Hits) -> int:
        if not ticket.chains or not len(self._fleet):
            return ticket.prefill_tokens
        return max(1, ticket.prefill_tokens - hits.item(hits.argmax()) * BLOCK_TOKENS)
