"""Who may have killed a worker: of the requests that it had, those that it had given no token yet. Pure.

What kills an engine does so in its first steps there, wherever it comes; what was streaming is innocent. If
just one of the suspects was a suspect before, it did it: the others are cleared, and lose nothing by it. What
was given to it after its last sign of life came too late to be the cause: suspects go on only one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import NamedTuple

from services.router.relay.attempt import Blame
from services.router.relay.flight import Flight


class Verdict(NamedTuple):
    """Of a death."""

    suspects: frozenset[Flight] = frozenset()
    cleared: frozenset[Flight] = frozenset()
    """It is known that they were not the cause."""
    convicted: Flight | None = None

    def of(self, flight: Flight) -> Blame:
        """What one of them has to do with it."""
        if flight is self.convicted:
            return Blame.CONVICTED
        return Blame.SUSPECTED if flight in self.suspects else Blame.NONE


NOBODY = Verdict()


def trial(flights: Iterable[Flight], until_s: float = inf) -> Verdict:
    """The verdict over the requests of a worker that died; `until_s`: when that was, at the latest."""
    flights = frozenset(flights)
    suspects = frozenset(each for each in flights if not each.proven and each.submitted_s <= until_s)
    again = [each for each in suspects if each.suspected]
    if len(again) == 1:
        return Verdict(cleared=flights - {again[0]}, convicted=again[0])
    return Verdict(suspects)
