"""What the log says of requests: whose, where they ran, how they ended and why; never what was in them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from services.common import logs
from services.common.errors import HeadraceError, InvalidArgument
from services.common.seldom import Seldom
from services.router.metrics import CLASS_LABEL

if TYPE_CHECKING:
    from services.router.reception import Visit

log = logs.get(__name__)


def why(error: HeadraceError) -> str:
    """The message; of wrong fields only which, since what is wrong with them may quote the caller."""
    if isinstance(error, InvalidArgument):
        return ", ".join(each.field for each in error.violations)
    return error.message


class Refusals:
    """Calls that did not get as far as to be a request: each kind of a tenant's once a minute."""

    def __init__(self) -> None:
        self._seldom = Seldom()

    def note(self, tenant: str, error: HeadraceError) -> None:
        """One was turned away as it came."""
        if self._seldom.due(f"{tenant} {error.reason}", time.monotonic()):
            log.info("refused", tenant=tenant, outcome=error.reason.lower(), why=why(error))


def request_ended(visit: Visit, outcome: str, reason: str, worker: str) -> None:
    """A request ended, well or not; `worker` is the last that it ran on."""
    flight = visit.flight
    finished = flight.finished if flight else None
    queue_s = flight.queue_s if flight else 0.0
    first_s = max(0.0, flight.first_token_s - visit.arrival_s) if flight else 0.0
    log.info(
        "request",
        request=visit.accepted.request_id,
        tenant=visit.tenant.name,
        outcome=outcome,
        why=reason,
        latency_class=CLASS_LABEL[visit.latency_class],
        prompt_tokens=len(flight.order.prompt_ids) if flight else 0,
        output_tokens=len(flight.ids) if flight else 0,
        worker=finished.worker_id if finished else worker,
        attempts=flight.attempt if flight else 0,
        queue_ms=finished.timings.queue_us // 1000 if finished else int(queue_s * 1000),
        first_token_ms=finished.timings.first_token_us // 1000 if finished else int(first_s * 1000),
        total_ms=int((time.monotonic() - visit.arrival_s) * 1000),
    )
