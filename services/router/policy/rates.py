"""Quotas of a tenant that several routers keep together: rates that are spent, and levels that are held.

A bucket of `burst` units refills at `units_per_s`. Whoever finds it with anything in it may take all that a
request costs, and leaves a debt that later requests wait for: a request larger than the burst is late, not
impossible.

The mesh has one bucket, elsewhere. A router spends what it has leased of it, and asks for more beside the
requests, never for one. While nobody has said no lately it may go into debt within its own share of the quota
(1 / routers), and pays that from its next leases. So over any time t all routers spend at most
burst + rate · t, and what all may owe is one burst more; without leases each goes on with its share.
"""

from __future__ import annotations

from math import inf, isfinite
from typing import NamedTuple

ACTIVE_S = 1.0
"""Who asked for nothing for so long gives back what it leased."""
AHEAD_S = 2.0
"""What is leased lasts for so long at the present rate."""
LEAST_PART = 0.05
"""Of the burst: the least that is leased at one time."""
LONGEST_REFUSAL_S = 60.0
REFUSED_AGAIN_S = 0.25
"""After a refusal it asks again at the latest."""
ASK_AGAIN_S = 1.0
"""After no answer."""
_MARGIN_S = 1.0


class Claim(NamedTuple):
    """What a router asks for."""

    wanted: float
    returned: float = 0.0
    used: float = 0.0


class Lease(NamedTuple):
    """What it was granted. Times in seconds."""

    granted: float
    valid_s: float
    retry_s: float


class Gcra:
    """One bucket: the generic cell rate algorithm. Times are seconds of a monotonic clock."""

    __slots__ = ("_burst_s", "_empty_until", "_seconds_a_unit")

    def __init__(self, units_per_s: float, burst_units: float) -> None:
        self._seconds_a_unit = 1.0 / units_per_s
        self._burst_s = burst_units * self._seconds_a_unit
        self._empty_until = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until the bucket has something in it; 0 when it has."""
        return max(0.0, self._theoretical(now) - now - self._burst_s + self._slack())

    def take(self, now: float, units: float) -> None:
        """Takes units, whether they are there or not."""
        self._empty_until = self._theoretical(now) + units * self._seconds_a_unit

    def forgive(self, now: float) -> None:
        """Leaves the bucket empty where it was in debt."""
        self._empty_until = min(self._empty_until, now + self._burst_s)

    def _theoretical(self, now: float) -> float:
        return max(self._empty_until, now)

    def _slack(self) -> float:
        """A bucket that holds less than one unit (or all of a smaller burst) counts as empty."""
        return min(self._seconds_a_unit, self._burst_s) * (1 - 1e-9)


class LeasedRate:
    """A rate quota as one router of `routers` keeps it. Without answers to its claims it keeps its share."""

    def __init__(self, units_per_s: float, burst_units: float, routers: int = 1) -> None:
        self.units_per_s = units_per_s
        self.burst_units = burst_units
        self._routers = routers
        self._whole = Gcra(units_per_s, burst_units)
        self._share = Gcra(units_per_s / routers, burst_units / routers)
        self._least = min(1.0, burst_units) * (1 - 1e-9)
        self._level = 0.0
        self._valid_until = self._refused_until = self._asked_s = self._ask_at = -inf
        self._active_s = -inf
        self._rate = self._spent = 0.0
        self._hungry = self._away = False

    def wait(self, now: float) -> float:
        """Seconds until a request may be let in; 0 for now."""
        own = self._whole.wait(now)
        if own > 0 or self._leased(now) >= self._least:
            return own
        self._hungry, self._active_s = True, now
        if now < self._refused_until:
            return self._refused_until - now
        return self._share.wait(now)

    def take(self, now: float, units: float) -> None:
        """Spends units."""
        leased = self._leased(now) >= self._least
        self._whole.take(now, units)
        self._share.take(now, units)
        if leased:
            self._share.forgive(now)
        self._level = self._leased(now) - units
        self._spent += units
        self._active_s = now

    def due(self, now: float) -> bool:
        """Whether there is something to ask for or to give back."""
        if now < self._ask_at:
            return False
        if now - self._active_s > ACTIVE_S:
            return self._leased(now) > 0
        return self._hungry or self._leased(now) < 0.5 * self._target()

    def claim(self, now: float) -> Claim:
        """What to ask for now; `settle` or `unanswered` follows."""
        since_s = min(max(now - self._asked_s, 0.05), ACTIVE_S)
        self._rate += min(1.0, since_s) * (self._spent / since_s - self._rate)
        self._asked_s, self._spent, self._hungry = now, 0.0, False
        if now - self._active_s > ACTIVE_S and self._leased(now) > 0:
            unspent, self._level, self._rate = self._leased(now), 0.0, 0.0
            return Claim(0.0, unspent)
        return Claim(min(max(self._target() - self._leased(now), 0.0), self.burst_units))

    def settle(self, now: float, claim: Claim, lease: Lease) -> None:
        """Takes the answer to a claim, as far as it can be true."""
        if not _credible(claim, lease, claim.wanted / self.units_per_s):
            self.unanswered(now)
            return
        if self._away:  # what was spent without leases was the router's own share of the refill
            self._level, self._away = max(self._level, -self.burst_units / self._routers), False
        self._level = self._leased(now) + lease.granted
        if lease.granted:
            self._valid_until = now + min(lease.valid_s, LONGEST_REFUSAL_S)
        refused = lease.granted < claim.wanted * (1 - 1e-9)
        self._refused_until = now + lease.retry_s if refused else -inf
        self._ask_at = now + min(lease.retry_s, REFUSED_AGAIN_S) if refused else now

    def unanswered(self, now: float) -> None:
        """Nobody answered a claim: the router goes on with its share."""
        self._away, self._refused_until, self._ask_at = True, -inf, now + ASK_AGAIN_S

    def _leased(self, now: float) -> float:
        """Leased and not spent; a debt when negative."""
        return self._level if now < self._valid_until else min(self._level, 0.0)

    def _target(self) -> float:
        least = min(self.burst_units, max(1.0, LEAST_PART * self.burst_units))
        return max(least, min(self._rate * AHEAD_S, self.burst_units))


class LeasedLevel:
    """A quota of what may be held at one time, as one router of `routers` keeps it. `used` is its own part.

    A router may hold what it was granted lately, else its share, at least `unit`. What others hold is known
    to the server as it was told last, so that a router that begins may overdraw by its share for a moment.
    """

    def __init__(self, limit: float, routers: int = 1, unit: float = 1.0) -> None:
        self.limit = limit
        self.used = 0.0
        self._share = min(limit, max(unit, limit // routers if unit == 1.0 else limit / routers))
        self._granted = 0.0
        self._valid_until = self._ask_at = self._held_s = -inf
        self._told = 0.0
        self._hungry = False

    def allows(self, now: float, units: float = 1.0) -> bool:
        """Whether `units` more may be held. One request may be larger than all that may be held."""
        most = self._granted if now < self._valid_until else self._share
        fits = self.used + units <= most * (1 + 1e-9) or (self.used == 0 and most > 0)
        self._hungry |= not fits
        return fits

    def hold(self, now: float, units: float) -> None:
        """Holds units more, or fewer when negative."""
        self.used = max(0.0, self.used + units)
        self._held_s = now

    def due(self, now: float) -> bool:
        """Whether others should hear of a change, or a grant is to be kept alive."""
        if now < self._ask_at:
            return False
        return (
            self._hungry or self._told != self.used or (self.used > 0 and now > self._valid_until - ACTIVE_S)
        )

    def claim(self, now: float) -> Claim:
        """What to ask for now; `settle` or `unanswered` follows."""
        active = self.used or self._hungry or now - self._held_s < ACTIVE_S
        self._told, self._hungry = self.used, False
        return Claim(self.limit if active else 0.0, used=self.used)

    def settle(self, now: float, claim: Claim, lease: Lease) -> None:
        """Takes the answer to a claim, as far as it can be true."""
        if not _credible(claim, lease, inf):
            self.unanswered(now)
            return
        self._granted = lease.granted
        self._valid_until = now + min(lease.valid_s, LONGEST_REFUSAL_S)
        self._ask_at = now

    def unanswered(self, now: float) -> None:
        """Nobody answered a claim: the last grant holds until it ends, then the share."""
        self._ask_at = now + ASK_AGAIN_S
        self._told = -1.0


def _credible(claim: Claim, lease: Lease, longest_retry_s: float) -> bool:
    """Whether an honest server could have said this."""
    if not all(map(isfinite, lease)) or min(lease) < 0:
        return False
    return lease.granted <= claim.wanted * (1 + 1e-9) and lease.retry_s <= longest_retry_s + _MARGIN_S
