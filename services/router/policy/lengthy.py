"""Prompts that take so long that others notice: one after the other to a worker, so that none fills it.

Workers tell such prompts the same way: they have half of a step's room at most while others wait, and leave
credit open beside themselves.
"""

from __future__ import annotations

from math import inf

from services.router.policy.fleet import Fleet
from services.router.policy.scores import Scores, own_tokens
from services.router.policy.speed import Mask, Speeds
from services.router.policy.spread import Hits
from services.router.policy.ticket import Ticket

_LENGTHY_S = 1.0
"""Twice the target of a first token of the most urgent class."""
_QUIET_SHARE = 0.5
"""Prompts of so many seconds go only where less than this part of that waits."""


class LengthyPrompts:
    """Says where they may go."""

    def __init__(self, scores: Scores) -> None:
        self._scores = scores
        self._speeds: Speeds | None = None
        self._fastest_s = (inf, inf)  # of a prompt token, and of half its attention to one before it

    def possible(self, ticket: Ticket, fleet: Fleet) -> bool:
        """Whether even the fastest worker computes the whole prompt for so long that others notice."""
        speeds, prompt = fleet.speeds, ticket.prefill_tokens
        if speeds is not self._speeds:
            token_s, attention_s = speeds.token_s.min(initial=inf), speeds.attention_s.min(initial=inf)
            self._speeds, self._fastest_s = speeds, (float(token_s), float(attention_s) / 2)
        token_s, attention_s = self._fastest_s
        return prompt * (token_s + attention_s * prompt) > _lengthy_s(ticket)

    def places(self, hits: Hits, ticket: Ticket, fleet: Fleet) -> Mask:
        """Workers for which the prompt is not lengthy, or where little prefill waits against it.

        Their credit stays open beside such a prompt, for others; the next one of its kind is to wait here.
        """
        own_s = self._scores.own_s(own_tokens(hits, ticket), ticket.prefill_tokens, fleet)
        queue_s = fleet.busy(ticket.foreground).queue_s
        found: Mask = (own_s <= _lengthy_s(ticket)) | (queue_s <= _QUIET_SHARE * own_s)
        return found


def _lengthy_s(ticket: Ticket) -> float:
    """More where its caller allows more: such a caller means all of its kind."""
    return max(_LENGTHY_S, 2.0 * (ticket.ttft_target_s or 0.0))
