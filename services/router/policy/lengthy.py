"""Prompts that take so long that others notice: one after the other to a worker, so that none fills it.

Workers tell such prompts the same way: they have half of a step's room at most while others wait, and leave
credit open beside themselves.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from services.router.policy.fleet import Fleet
from services.router.policy.scores import Scores, own_tokens
from services.router.policy.speed import Mask, Speeds
from services.router.policy.spread import Hits
from services.router.policy.ticket import Ticket
from services.router.policy.worker import BLOCK_TOKENS

_LENGTHY_S = 1.0
"""Twice the target of a first token of the most urgent class."""
_QUIET_SHARE = 0.5
"""Prompts of so many seconds go only where less than this part of that waits."""


class LengthyPrompts:
    """Says where they may go."""

    def __init__(self, scores: Scores) -> None:
        self._scores = scores
        self._speeds: Speeds | None = None
        self._fastest = self._slowest = _Speed(inf, inf)

    def possible(self, hits: Hits, ticket: Ticket, fleet: Fleet) -> bool:
        """Whether `places` is to be asked, which costs more.

        Even the fastest worker takes so long for the whole prompt that others notice, and the slowest would
        for what the least warm one has to compute of it.
        """
        if fleet.speeds is not self._speeds:
            self._look(fleet.speeds)
        prompt, lengthy_s = ticket.prefill_tokens, _lengthy_s(ticket)
        if self._fastest.own_s(prompt, prompt) <= lengthy_s:
            return False
        own = max(prompt - hits.item(hits.argmin()) * BLOCK_TOKENS, 1)
        return not self._slowest.own_s(own, prompt) <= lengthy_s

    def places(self, hits: Hits, ticket: Ticket, fleet: Fleet) -> Mask:
        """Workers for which the prompt is not lengthy, or where little prefill waits against it.

        Their credit stays open beside such a prompt, for others; the next one of its kind is to wait here.
        """
        own_s = self._scores.own_s(own_tokens(hits, ticket), ticket.prefill_tokens, fleet)
        queue_s = fleet.busy(ticket.foreground).queue_s
        found: Mask = (own_s <= _lengthy_s(ticket)) | (queue_s <= _QUIET_SHARE * own_s)
        return found

    def _look(self, speeds: Speeds) -> None:
        self._speeds, told = speeds, (speeds.token_s, speeds.attention_s)
        self._fastest = _Speed(*(float(each.min(initial=inf)) for each in told))
        self._slowest = _Speed(*(float(each.max(initial=-inf)) for each in told))


class _Speed(NamedTuple):
    """Seconds of a prompt token, and of its attention to one before it."""

    token_s: float
    attention_s: float

    def own_s(self, own: int, prompt: int) -> float:
        """Of so many tokens at a prompt's end."""
        return own * (self.token_s + self.attention_s * (prompt - own / 2))


def _lengthy_s(ticket: Ticket) -> float:
    """More where its caller allows more: such a caller means all of its kind."""
    return max(_LENGTHY_S, 2.0 * (ticket.ttft_target_s or 0.0))
