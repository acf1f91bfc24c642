"""Tenants' quotas, kept together with the other routers by leases from the cache service.

A request is let in or refused by what this router holds; what is leased is asked for beside the requests, by
the one task of `run`. Slow, dead or lying, the cache service leaves each router with its share of a quota.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import grpc
from headrace.v1 import cache_pb2, cache_pb2_grpc

from services.common import logs, transport
from services.common.errors import Unavailable
from services.common.identity import Tenant
from services.common.members import MeshSecret
from services.common.transport import Tls
from services.router.metrics import RouterMetrics
from services.router.policy.rates import Claim, Lease, LeasedLevel, LeasedRate

SERVICE = "cache"
MINUTE_S = 60.0
CALL_S = 1.0
ROUND_S = 0.25
"""Between two rounds of claims; sooner, but at least REST_S later, when somebody needs more."""
REST_S = 0.02
CLAIMS_A_CALL = 256
KV_UNITS = 1000.0
"""A tenant's part of the KV memory is told in thousandths."""
log = logs.get(__name__)
Kept = LeasedRate | LeasedLevel


@dataclass(slots=True)
class TenantQuotas:
    """One tenant's quotas in this router; None: unlimited."""

    tenant: Tenant
    requests: LeasedRate | None
    tokens: LeasedRate | None
    concurrency: LeasedLevel | None
    kv: LeasedLevel | None

    def kinds(self) -> Iterator[tuple[str, Kept]]:
        """The limited ones, by the name that they have on the wire."""
        for name in ("requests", "tokens", "concurrency", "kv"):
            kept: Kept | None = getattr(self, name)
            if kept is not None:
                yield name, kept


class _Asked(NamedTuple):
    tenant: str
    quota: str
    kept: Kept
    claim: Claim


class Quotas:
    """All tenants' quotas.

    Args:
        routers: router processes of the mesh, this one included: a quota's share is one of so many.
    """

    def __init__(self, routers: int = 1) -> None:
        self._routers = max(1, routers)
        self._tenants: dict[str, TenantQuotas] = {}
        self.wanted = asyncio.Event()

    def of(self, tenant: Tenant) -> TenantQuotas:
        """A tenant's quotas; begun anew when they were changed."""
        found = self._tenants.get(tenant.name)
        if found is None or (found.tenant is not tenant and found.tenant != tenant):
            before = found or TenantQuotas(tenant, None, None, None, None)
            found = self._tenants[tenant.name] = self._made(tenant, before)
        return found

    def kv_of(self, tenant: str) -> LeasedLevel | None:
        """What a tenant that has asked may hold of KV memory; None: all of it."""
        found = self._tenants.get(tenant)
        return found.kv if found is not None else None

    def due(self, now: float) -> list[_Asked]:
        """What to ask for now; each is to be settled."""
        return [
            _Asked(name, quota, kept, kept.claim(now))
            for name, each in self._tenants.items()
            for quota, kept in each.kinds()
            if kept.due(now)
        ]

    def _made(self, tenant: Tenant, before: TenantQuotas) -> TenantQuotas:
        kv_units = None if tenant.kv_share is None else tenant.kv_share * KV_UNITS
        return TenantQuotas(
            tenant,
            self._rate(tenant.requests_per_minute, before.requests),
            self._rate(tenant.tokens_per_minute, before.tokens),
            self._level(tenant.concurrent_requests, 1.0, before.concurrency),
            self._level(kv_units, 0.0, before.kv),
        )

    def _rate(self, per_minute: float | None, before: LeasedRate | None) -> LeasedRate | None:
        """A minute's units may be used at once."""
        if per_minute is None or (before is not None and before.burst_units == per_minute):
            return before if per_minute is not None else None
        return LeasedRate(per_minute / MINUTE_S, per_minute, self._routers)

    def _level(self, limit: float | None, unit: float, before: LeasedLevel | None) -> LeasedLevel | None:
        """What is held is kept when the limit changes."""
        if limit is None or (before is not None and before.limit == limit):
            return before if limit is not None else None
        level = LeasedLevel(limit, self._routers, unit)
        level.used = before.used if before is not None else 0.0
        return level


class Leaser:
    """Asks the cache service for shares; `run` is a task of the service."""

    def __init__(
        self,
        quotas: Quotas,
        address: str,
        tls: Tls,
        mesh: MeshSecret,
        tag_of: Callable[[str], bytes],
        metrics: RouterMetrics,
    ) -> None:
        self.router_id = ""
        self._quotas = quotas
        self._channel = transport.channel(address, tls)
        self._stub = cache_pb2_grpc.CacheServiceStub(self._channel)
        self._metadata = mesh.metadata(SERVICE)
        self._tag_of = tag_of
        self._metrics = metrics

    async def run(self) -> None:
        """Asks, round after round."""
        while True:
            self._quotas.wanted.clear()
            asked = [each for each in self._quotas.due(time.monotonic()) if self._can_be_named(each)]
            for start in range(0, len(asked), CLAIMS_A_CALL):
                await self._ask(asked[start : start + CLAIMS_A_CALL])
            await asyncio.sleep(REST_S)
            await self._next_round()

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def _next_round(self) -> None:
        try:
            await asyncio.wait_for(self._quotas.wanted.wait(), ROUND_S)
        except TimeoutError:
            return

    def _can_be_named(self, asked: _Asked) -> bool:
        """Whether the tenant has a tag to ask under; without, its quota is this router's share."""
        try:
            self._tag_of(asked.tenant)
        except Unavailable:
            self._settle([asked], [])
            return False
        return True

    async def _ask(self, asked: list[_Asked]) -> None:
        request = cache_pb2.LeaseQuotaRequest(router_id=self.router_id, claims=map(self._claim, asked))
        call = self._stub.LeaseQuota(request, timeout=CALL_S, metadata=self._metadata)
        leases: list[cache_pb2.QuotaLease] = []
        try:
            leases = list((await call).leases)
        except grpc.aio.AioRpcError as error:
            log.debug("no_quota_lease", code=error.code().name)
        finally:
            call.cancel()
            self._settle(asked, leases)

    def _settle(self, asked: list[_Asked], leases: list[cache_pb2.QuotaLease]) -> None:
        """A number of answers that is not that of the claims is none."""
        now = time.monotonic()
        self._metrics.leases.labels("answered" if len(leases) == len(asked) else "unanswered").inc(len(asked))
        for position, each in enumerate(asked):
            if len(leases) == len(asked):
                each.kept.settle(now, each.claim, _lease(leases[position]))
            else:
                each.kept.unanswered(now)

    def _claim(self, asked: _Asked) -> cache_pb2.QuotaClaim:
        kept, claim = asked.kept, asked.claim
        rate = kept if isinstance(kept, LeasedRate) else None
        level = kept if isinstance(kept, LeasedLevel) else None
        return cache_pb2.QuotaClaim(
            tenant_tag=self._tag_of(asked.tenant),
            quota=asked.quota,
            units_per_minute=rate.units_per_s * MINUTE_S if rate else 0.0,
            burst_units=rate.burst_units if rate else level.limit if level else 0.0,
            wanted_units=claim.wanted,
            returned_units=claim.returned,
            used_units=claim.used,
        )


def _lease(lease: cache_pb2.QuotaLease) -> Lease:
    return Lease(lease.granted_units, lease.valid_ms / 1000, lease.retry_ms / 1000)
