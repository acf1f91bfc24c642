"""The connection to Valkey, and whether it can be relied on now.

One breaker for everything: look-ups, writes, quotas and snapshots stop together and start together. A task of
its own probes while it is open, and installs our functions whenever the server may be another one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, OutOfMemoryError, RedisError, ResponseError, TimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from services.cache.breaker import Breaker
from services.cache.functions import LIBRARY
from services.cache.metrics import CacheMetrics
from services.cache.settings import CacheSettings
from services.common import logs
from services.common.errors import Unavailable

Result = TypeVar("Result")
MOST_CONNECTIONS = 16
log = logs.get(__name__)


class Away(Unavailable):
    """Valkey cannot be asked now. Look-ups become misses; what needs it says so."""

    reason = "STORAGE_AWAY"

    def __init__(self) -> None:
        super().__init__("the cache's storage is away", retry_s=1.0)


class Valkey:
    """One server. Does not connect before `watch` runs; never raises redis-py's exceptions."""

    def __init__(self, settings: CacheSettings, metrics: CacheMetrics) -> None:
        self.client: Any = connect(settings)  # redis-py types replies for str and bytes at once
        self._metrics = metrics
        self._breaker = Breaker(random.random)
        self._lost = asyncio.Event()
        self._lost.set()

    @property
    def reliable(self) -> bool:
        """Whether it may be asked."""
        return self._breaker.closed

    async def watch(self) -> None:
        """Finds out when the server is back; runs until cancelled."""
        while True:
            await self._lost.wait()
            await asyncio.sleep(max(0.0, self._breaker.probe_due_s - time.monotonic()))
            await self._probe()

    async def call(self, operation: Awaitable[Result]) -> Result:
        """Awaits an operation off the critical path. Raises Away."""
        try:
            return await operation
        except RedisError as error:
            self.failed(error)
            raise Away from None

    def answered(self, ok: bool, seconds: float) -> None:
        """Tells how a look-up went; enough bad ones stop all calls."""
        was_reliable = self.reliable
        self._breaker.record(ok, seconds, time.monotonic())
        if was_reliable and not self.reliable:
            self._gone("look-ups are too slow")

    def failed(self, error: RedisError) -> None:
        """Tells of an error: all calls stop until the server is back and has our functions."""
        if not isinstance(error, (ConnectionError, TimeoutError, ResponseError)):
            log.error("valkey_error", exc_info=error)
        was_reliable = self.reliable
        self._breaker.open(time.monotonic())
        if was_reliable:
            self._gone(_brief(error))

    async def close(self) -> None:
        """Closes all connections."""
        await self.client.aclose()

    async def _probe(self) -> None:
        try:
            await self._install()
        except RedisError as error:
            first = self._breaker.probe_due_s == 0.0
            self._breaker.open(time.monotonic())
            if first:
                log.warning("valkey_away", why=_brief(error))
            return
        self._breaker.close(time.monotonic())
        self._lost.clear()
        self._metrics.valkey_up.set(1)
        log.info("valkey_up")

    async def _install(self) -> None:
        try:
            await self.client.function_load(LIBRARY, replace=True)
        except OutOfMemoryError:  # full: look-ups are worth having if the functions are there
            if not await self.client.function_list(library="headrace"):
                raise

    def _gone(self, why: str) -> None:
        self._lost.set()
        self._metrics.valkey_up.set(0)
        self._metrics.valkey_lost.inc()
        log.warning("valkey_away", why=why)


def connect(settings: CacheSettings) -> Redis:
    """A client that has not connected yet. Bytes in, bytes out; RESP3; an operation is tried once."""
    assert settings.valkey_url is not None
    timeout_s = settings.call_timeout_ms / 1000
    options: dict[str, Any] = {
        "protocol": 3,
        "username": settings.valkey_user,
        "password": settings.valkey_password(),
        "client_name": "headrace-cache",
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "max_connections": MOST_CONNECTIONS,
        "retry": Retry(NoBackoff(), 0),
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    url = (
        settings.valkey_url.replace("valkey", "redis", 1)
        if _own_scheme(settings.valkey_url)
        else settings.valkey_url
    )
    client: Redis = Redis.from_url(
        url, **{name: value for name, value in options.items() if value is not None}
    )
    return client


def _own_scheme(url: str) -> bool:
    return url.startswith(("valkey://", "valkeys://"))


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
