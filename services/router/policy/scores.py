"""How good workers are for a request, in seconds; less is better.

(queued + own uncached prefill) × (in flight + 1)
"""

from __future__ import annotations

import numpy as np

from services.router.policy.fleet import Fleet
from services.router.policy.kinds import Kind
from services.router.policy.placement_settings import PlacementSettings
from services.router.policy.speed import Floats
from services.router.policy.spread import Hits
from services.router.policy.ticket import Ticket
from services.router.policy.worker import BLOCK_TOKENS


class Scores:
    """The score, of the parts that are switched on."""

    def __init__(self, settings: PlacementSettings) -> None:
        self._settings = settings

    def of(self, own: Hits | int, ticket: Ticket, fleet: Fleet) -> Floats:
        """Of all workers. `own`: tokens of the prompt to compute, by position or everywhere."""
        settings, kind = self._settings, fleet.busy(ticket.foreground)
        if not settings.calibrated:
            return self._uncalibrated(own, kind)
        seconds = self.own_s(own, ticket.prefill_tokens, fleet)
        if settings.queue_term:
            seconds += kind.queue_s
        if settings.in_flight_term:
            seconds *= kind.joined_load
        return seconds

    def own_s(self, own: Hits | int, prompt: int, fleet: Fleet) -> Floats:
        """Seconds of the prompt's own prefill."""
        token_s = fleet.speeds.token_s
        if self._settings.attention_term:
            token_s = token_s + fleet.speeds.attention_s * (prompt - own / 2)
        seconds: Floats = own * token_s
        return seconds

    def _uncalibrated(self, own: Hits | int, kind: Kind) -> Floats:
        """In tokens and sequences, as if all workers were equally fast."""
        tokens: Floats = own + kind.waiting_tokens * self._settings.queue_term
        return tokens * (kind.sequences + 1) if self._settings.in_flight_term else tokens


def own_tokens(hits: Hits, ticket: Ticket) -> Hits:
    """Prompt tokens to compute, by position: the last one of a prompt always is."""
    prompt = ticket.prefill_tokens
    own: Hits = np.maximum(prompt - hits * BLOCK_TOKENS, min(prompt, 1))
    return own


def cached_tokens(hits: Hits, position: int, ticket: Ticket) -> int:
    """Prompt tokens that a worker need not compute."""
    return min(hits.item(position) * BLOCK_TOKENS, max(0, ticket.prefill_tokens - 1))
