"""Leases of tenants' quotas, counted inside Valkey."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.v1 import cache_pb2
from redis.exceptions import RedisError

from services.cache.functions import LEASE
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
            numbers = (claim.units_per_minute, claim.burst_units, claim.wanted_units, claim.returned_units)
            arguments = (*(repr(number) for number in numbers), self._lease_ms)
            pipeline.fcall(LEASE, 2, *_names(router_id, claim), *arguments)
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
        return cache_pb2.QuotaLease(
            granted_units=granted, valid_ms=self._lease_ms if granted else 0, retry_ms=retry_ms
        )


def _names(router_id: str, claim: cache_pb2.QuotaClaim) -> tuple[bytes, bytes]:
    bucket = claim.quota.encode() + b":" + claim.tenant_tag
    return b"hr:q:" + bucket, b"hr:l:" + bucket + b":" + router_id.encode()
