"""How long a request waits for a closed worker that keeps its prompt, before it goes to one that does not."""

from __future__ import annotations

from math import inf

import numpy as np

from services.router.policy.classify import LatencyClass
from services.router.policy.fleet import Fleet
from services.router.policy.placement_settings import PlacementSettings
from services.router.policy.speed import Mask
from services.router.policy.spread import Hits
from services.router.policy.ticket import Ticket

SCARCE = 0.25
"""Of a worker's blocks: with fewer to take, a second copy of a prefix displaces other work."""
_WAIT_WEIGHT = 0.05
_LONGEST_WAIT_S = 60.0


class Patience:
    """Remembers how long requests waited lately: who has to wait anyway may as well wait for warmth."""

    def __init__(self, settings: PlacementSettings) -> None:
        self._settings = settings
        self._recent_wait_s = dict.fromkeys(LatencyClass, 0.0)
        """Moving averages by class: long waits of batch work make nobody else patient."""

    def dispatched(self, ticket: Ticket, now: float) -> None:
        """A request goes to a worker now."""
        waited_s = min(max(now - ticket.arrival_s, 0.0), _LONGEST_WAIT_S)
        recent_s = self._recent_wait_s[ticket.latency_class]
        self._recent_wait_s[ticket.latency_class] = recent_s + _WAIT_WEIGHT * (waited_s - recent_s)

    def until(
        self, ticket: Ticket, fleet: Fleet, now: float, head_wait_s: float | None, saved_s: float
    ) -> float:
        """The end of a request's patience: never past its own slack.

        Args:
            head_wait_s: as `Placement.choose` says.
            saved_s: GPU seconds that waiting saves.
        """
        settings = self._settings
        if not settings.patience:
            return -inf
        least, most = settings.patience_s
        alone_s = ticket.prefill_tokens * float(fleet.speeds.token_s.min())
        start_by_s = inf if ticket.deadline_s is None else ticket.deadline_s - alone_s
        if head_wait_s == inf:
            return min(now + most, start_by_s)
        usual_s = max(head_wait_s or 0.0, self._recent_wait_s[ticket.latency_class])
        worth_s = max(settings.patience_saved * saved_s, least)
        until = ticket.arrival_s + min(max(settings.patience_factor * usual_s, worth_s), most)
        if ticket.ttft_target_s is not None:
            start_by = ticket.arrival_s + ticket.ttft_target_s - alone_s
            until = min(until, start_by if now <= start_by else ticket.arrival_s + min(worth_s, most))
        return min(until, now + most, start_by_s)


def displaced_s(warm: Mask, takers: Mask, hits: Hits, ticket: Ticket, fleet: Fleet) -> float:
    """GPU seconds that a second copy of the prefix displaces where KV is scarce, while it is read."""
    room = fleet.busy(ticket.foreground).room
    position = int(np.where(takers, room, -inf).argmax())
    view = fleet.at(position)
    blocks = min(room.item(position), view.total_blocks)
    scarce = 1.0 - blocks / max(SCARCE * view.total_blocks, 1.0)
    if scarce <= 0.0:
        return 0.0
    step_s = fleet.model_of(position).decode_s(view.sequences, view.running_context)
    copied = int(hits[warm].max()) / max(view.total_blocks, 1)
    return scarce * copied * ticket.expected_output * step_s
