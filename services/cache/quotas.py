"""Leases of tenants' quotas, counted inside Valkey."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.v1 import cache_pb2
from redis.exceptions import RedisError

from services.cache.checks import LEVELS
from services.cache.functions import HOLD, LEASE
from services.cache.metrics import CacheMetrics
from services.cache.valkey import Away, Valkey


class Quotas:
    """Grants shares. A claim is settled atomically; a lost reply loses units, it never doubles them."""

    def __init__(self, valkey: Valkey, metrics: CacheMetrics, lease_ms: int) -> None:
        self._valkey = valkey
        self._metrics = metrics
        self._lease_ms = lease_ms

    async def lease(
        self, router_id: str, claims: Sequence[cache_pb2.QuotaClaim]
    ) -> list[cache_pb2.QuotaLease]:
        """One lease a claim, in their order. Raises Away: the router goes on with the share it has."""
        if not self._valkey.reliable:
            raise Away
        pipeline = self._valkey.client.pipeline(transaction=False)
        for claim in claims:
            pipeline.fcall(*_function(router_id, claim), self._lease_ms)
        outcomes = await self._valkey.call(pipeline.execute(raise_on_error=False))
        failure = next((each for each in outcomes if isinstance(each, RedisError)), None)
        if failure is not None:
            self._valkey.failed(failure)
            raise Away
        return [self._lease(claim, each) for claim, each in zip(claims, outcomes, strict=True)]

    def _lease(self, claim: cache_pb2.QuotaClaim, outcome: tuple[bytes, int]) -> cache_pb2.QuotaLease:
        granted, retry_ms = float(outcome[0]), int(outcome[1])
        word = "whole" if not retry_ms else "part" if granted else "none"
        self._metrics.leases.labels(word).inc()
        holds = granted > 0 or claim.quota in LEVELS  # that nothing may be held is valid for a while, too
        return cache_pb2.QuotaLease(
            granted_units=granted, valid_ms=self._lease_ms if holds else 0, retry_ms=retry_ms
        )


def _function(router_id: str, claim: cache_pb2.QuotaClaim) -> tuple[str | int | bytes, ...]:
    """The function of a claim, with its keys and arguments but the last."""
    name, router = claim.quota.encode() + b":" + claim.tenant_tag, router_id.encode()
    if claim.quota in LEVELS:
        level = (claim.burst_units, claim.wanted_units, claim.used_units)
        return HOLD, 1, b"hr:h:" + name, router, *map(repr, level)
    rate = (claim.units_per_minute, claim.burst_units, claim.wanted_units, claim.returned_units)
    return LEASE, 2, b"hr:q:" + name, b"hr:l:" + name + b":" + router, *map(repr, rate)
