"""What one tenant may have in the router at one time and in a minute, before anything is spent on it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from services.common.errors import AlreadyExists, Overloaded, QuotaExceeded
from services.common.identity import Tenant
from services.router.policy import admission
from services.router.quotas import Quotas, TenantQuotas

RETRY_S = 1.0


@dataclass(slots=True)
class _Account:
    """One tenant's use."""

    quotas: TenantQuotas
    queued_bytes: int = 0
    running: set[str] = field(default_factory=set)


class Pass:
    """One request's share of the limits; give it back with `leave`."""

    def __init__(self, gate: Gate, account: _Account, request_id: str, size: int) -> None:
        self._gate = gate
        self._account = account
        self._request_id = request_id
        self._queued = size

    def started(self) -> None:
        """The request no longer waits."""
        self._gate.queue(self._account, -self._queued)
        self._queued = 0

    def charge(self, tokens: int) -> None:
        """Counts tokens against the tenant's minute."""
        quota = self._account.quotas.tokens
        if quota is not None and tokens:
            quota.take(time.monotonic(), tokens)
            self._gate.quotas.wanted.set()

    def leave(self) -> None:
        """The request has ended."""
        self.started()
        self._account.running.discard(self._request_id)
        quota = self._account.quotas.concurrency
        if quota is not None:
            quota.hold(time.monotonic(), -1)
        self._gate.left()


class Gate:
    """All tenants' limits in this router process."""

    def __init__(self, queued_bytes: int, quotas: Quotas | None = None) -> None:
        self.queued_bytes = 0
        self.quotas = quotas or Quotas()
        self._most_queued = queued_bytes
        self._accounts: dict[str, _Account] = {}
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    async def emptied(self) -> None:
        """Returns when no request is inside."""
        await self._empty.wait()

    def queue(self, account: _Account, size: int) -> None:
        """So many bytes of a tenant wait more, or fewer when negative."""
        account.queued_bytes += size
        self.queued_bytes += size

    def left(self) -> None:
        """A pass was given back."""
        self._inside -= 1
        if not self._inside:
            self._empty.set()

    def enter(self, tenant: Tenant, request_id: str, size: int) -> Pass:
        """Lets a request of `size` bytes in.

        Raises:
            AlreadyExists: the tenant has a request of this name running.
            QuotaExceeded: the tenant has too much at once or in a minute.
            Overloaded: too much waits in all.
        """
        account = self._account(tenant)
        now = time.monotonic()
        self._check(tenant, account, request_id, size, now)
        self._spend(account.quotas, now)
        self._inside += 1
        self._empty.clear()
        account.running.add(request_id)
        self.queue(account, size)
        return Pass(self, account, request_id, size)

    def _check(self, tenant: Tenant, account: _Account, request_id: str, size: int, now: float) -> None:
        if request_id in account.running:
            raise AlreadyExists("a request of this name is running", reason="REQUEST_ID_IN_USE")
        self._check_quotas(account.quotas, now)
        if account.queued_bytes + size > tenant.queued_bytes:
            raise QuotaExceeded(f"{tenant.queued_bytes} bytes may wait at one time", retry_s=RETRY_S)
        free = self._most_queued - self.queued_bytes
        if size > free or admission.part_full(account.queued_bytes, free):
            raise Overloaded("too many bytes wait", retry_s=RETRY_S)

    def _check_quotas(self, quotas: TenantQuotas, now: float) -> None:
        level = quotas.concurrency
        if level is not None and not level.allows(now):
            self.quotas.wanted.set()
            message = f"{level.limit:.0f} requests at one time are allowed"
            raise QuotaExceeded(message, retry_s=RETRY_S)
        for rate, what in ((quotas.requests, "requests"), (quotas.tokens, "tokens")):
            wait_s = rate.wait(now) if rate is not None else 0.0
            if wait_s > 0:
                self.quotas.wanted.set()
                raise QuotaExceeded(f"the {what} of this minute are used up", retry_s=wait_s)

    def _spend(self, quotas: TenantQuotas, now: float) -> None:
        if quotas.requests is not None:
            quotas.requests.take(now, 1)
            self.quotas.wanted.set()
        if quotas.concurrency is not None:
            quotas.concurrency.hold(now, 1)
            self.quotas.wanted.set()

    def _account(self, tenant: Tenant) -> _Account:
        quotas = self.quotas.of(tenant)
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = _Account(quotas)
        account.quotas = quotas
        return account
