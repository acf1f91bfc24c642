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
    """What a request costs on a worker that keeps so much of it."""

    uncached: int
    """Prompt tokens to compute."""
    estimate: Estimate


class _Looked(NamedTuple):
    """A prompt that was looked up, as the index was then."""

    chains: Mapping[bytes, Digests]
    index_changes: int
    hits: Hits


class _Weighed(NamedTuple):
    """A request that was weighed, as the workers were then."""

    ticket: Ticket
    fleet_changes: int
    hits: Hits
    weight: Weight

    def holds(self, ticket: Ticket, fleet: Fleet) -> bool:
        """Whether it is about this request and these workers, whatever they keep."""
        return self.ticket is ticket and self.fleet_changes == fleet.changes


class Scale:
    """Weighs the requests of one model; remembers the last one."""

    def __init__(self, fleet: Fleet, predictor: Predictor) -> None:
        self._fleet = fleet
        self._predictor = predictor
        self._looked: _Looked | None = None
        self._weighed: _Weighed | None = None

    def hits(self, ticket: Ticket) -> Hits:
        """Blocks of its prompt that each worker keeps; not to be written to. [positions]"""
        chains, index, last = ticket.chains, self._fleet.index, self._looked
        if last is not None and last.chains is chains and last.index_changes == index.changes:
            return last.hits
        hits = self._fleet.hits(chains) if chains else index.no_hits()
        self._looked = _Looked(chains, index.changes, hits)
        return hits

    def weigh(self, ticket: Ticket) -> Weight:
        """On the worker that keeps most of its prompt."""
        hits, last = self.hits(ticket), self._weighed
        if last is not None and last.hits is hits and last.holds(ticket, self._fleet):
            return last.weight
        uncached = self._uncached(ticket, hits)
        weight = Weight(uncached, self._predictor.estimate(ticket, uncached))
        self._weighed = _Weighed(ticket, self._fleet.changes, hits, weight)
        return weight

    def estimate(self, ticket: Ticket, uncached: int) -> Estimate:
        """On a worker that keeps all of it but so many tokens."""
        last = self._weighed
        if last is not None and last.weight.uncached == uncached and last.holds(ticket, self._fleet):
            return last.weight.estimate
        return self._predictor.estimate(ticket, uncached)

    def _uncached(self, ticket: Ticket, hits: Hits) -> int:
        if not ticket.chains or not len(self._fleet):
            return ticket.prefill_tokens
        return max(1, ticket.prefill_tokens - hits.item(hits.argmax()) * BLOCK_TOKENS)
