"""Weighted virtual token counters: what each tenant was served, so that the one with least goes next.

    counter = lift + (wp * computed prompt + wc * cached prompt + wq * output tokens) / weight

Own requests are charged here as they go: the prompt at dispatch, output as it streams. What other routers
were served is learnt from the workers' totals: everything beyond the own charges. Own charges are made before
the workers report them, so the difference never counts own work twice; it only grows, and is exact whenever
no own prompt is being computed.

A tenant that comes back starts level with the least of those that wait, or where the last one stood: an idle
tenant saves nothing up. Backlogged tenants then differ by at most 2 max(wp * Lin, wq * M) / weight.
Source: Sheng et al., "Fairness in serving large language models", 2024 (arXiv 2401.00588).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from services.router.policy.queue.ranked import Ranked

_LEAST_WEIGHT = 1e-3
_ACCOUNTS = 10_000
MOST_TOKENS = 1 << 24
"""No single report counts for more tokens."""


@dataclass(slots=True)
class Tokens:
    """Prompt tokens computed, and output tokens."""

    prompt: float = 0.0
    output: float = 0.0


@dataclass(slots=True)
class Account:
    """One tenant's service in one class."""

    tenant: str
    index: int
    weight: float = 1.0
    lift: float = 0.0
    own: Tokens = field(default_factory=Tokens)
    cached: float = 0.0
    all: Tokens = field(default_factory=Tokens)
    others: Tokens = field(default_factory=Tokens)
    rank: float | None = None
    """The counter that it is ranked by; None: nothing of it waits."""


class Prices(NamedTuple):
    """Weights of tokens: of a prompt as computed, of one as found in a cache, and of output."""

    prompt: float
    cached: float
    output: float


class Counters:
    """The tenants of one class."""

    def __init__(self, prices: Prices, *, lift: bool = True) -> None:
        self._prices = prices
        self._lifts = lift
        self._accounts: dict[str, Account] = {}
        self._by_index: dict[int, Account] = {}
        self._ranked: Ranked[tuple[float, int]] = Ranked()
        self._stale: set[str] = set()
        self._last = 0.0
        self._indices = 0

    def counter(self, tenant: str) -> float:
        """Weighted tokens that the tenant was served, as far as they count."""
        return self._counter(self._account(tenant))

    def tenants(self) -> Iterator[str]:
        """Those that wait, the least served first. Charge nothing while walking."""
        self._rank_again()
        for _, index in self._ranked:
            yield self._by_index[index].tenant

    def wait(self, tenant: str, weight: float) -> None:
        """The tenant has something waiting."""
        account = self._account(tenant)
        if weight != account.weight:
            self._weigh(account, weight)
        if account.rank is None:
            counter = self._counter(account)
            if self._lifts and self._level() > counter:
                account.lift += self._level() - counter
                counter = self._counter(account)
            account.rank = counter
            self._ranked.add((counter, account.index))

    def idle(self, tenant: str) -> None:
        """Nothing of the tenant waits any more."""
        account = self._account(tenant)
        if account.rank is None:
            return
        self._ranked.remove((account.rank, account.index))
        account.rank = None
        self._stale.discard(tenant)
        if not self._ranked:
            self._last = max(self._last, self._counter(account))
            self._forget()

    def charge(self, tenant: str, prompt: float = 0.0, cached: float = 0.0, output: float = 0.0) -> None:
        """Own service of the tenant; negative amounts give back."""
        account = self._account(tenant)
        account.own.prompt += prompt
        account.own.output += output
        account.cached += cached
        if account.rank is not None:
            self._stale.add(tenant)

    def correct(self, tenant: str, prompt: float, cached: float) -> None:
        """The prompt of a request turned out otherwise than it was charged.

        Where more was computed than charged, the workers' totals made it look like others' work.
        """
        account = self._account(tenant)
        account.others.prompt = max(0.0, account.others.prompt - max(0.0, prompt))
        self.charge(tenant, prompt, cached)

    def served(self, tenant: str, prompt: float, output: float) -> None:
        """What workers did for the tenant, over all routers, since they last told."""
        account = self._account(tenant)
        account.all.prompt += min(max(prompt, 0.0), MOST_TOKENS)
        account.all.output += min(max(output, 0.0), MOST_TOKENS)
        account.others.prompt = max(account.others.prompt, account.all.prompt - account.own.prompt)
        account.others.output = max(account.others.output, account.all.output - account.own.output)
        if account.rank is not None:
            self._stale.add(tenant)

    def _account(self, tenant: str) -> Account:
        account = self._accounts.get(tenant)
        if account is None:
            self._indices += 1
            account = self._accounts[tenant] = Account(tenant, self._indices)
            self._by_index[account.index] = account
        return account

    def _counter(self, account: Account) -> float:
        prompt = account.own.prompt + account.others.prompt
        made = account.own.output + account.others.output
        prices = self._prices
        tokens = prices.prompt * prompt + prices.cached * account.cached + prices.output * made
        return account.lift + tokens / account.weight

    def _level(self) -> float:
        """Where a tenant starts that comes back."""
        self._rank_again()
        first = self._ranked.first
        return self._last if first is None else first[0]

    def _weigh(self, account: Account, weight: float) -> None:
        """A weight holds from now on: what was served before counts as it did."""
        weight = weight if weight >= _LEAST_WEIGHT else _LEAST_WEIGHT  # also where it is not a number
        if weight != account.weight:
            before = self._counter(account)
            account.weight = weight
            account.lift += before - self._counter(account)

    def _rank_again(self) -> None:
        if not self._stale:
            return
        for tenant in self._stale:
            account = self._accounts[tenant]
            assert account.rank is not None, "only tenants that wait are ranked"
            self._ranked.remove((account.rank, account.index))
            account.rank = self._counter(account)
            self._ranked.add((account.rank, account.index))
        self._stale.clear()

    def _forget(self) -> None:
        """Nobody waits: who comes back starts level anyway."""
        if len(self._accounts) > _ACCOUNTS:
            self._accounts.clear()
            self._by_index.clear()
