"""One cache service: listener, store, tasks. It serves whether or not Valkey is there."""

from __future__ import annotations

from headrace.v1 import cache_pb2
from prometheus_client import CollectorRegistry

from services.cache.metrics import CacheMetrics
from services.cache.quotas import Quotas
from services.cache.servicer import CacheServicer
from services.cache.settings import CacheSettings
from services.cache.snapshots import Snapshots
from services.cache.store import Store
from services.cache.valkey import Valkey
from services.common import logs, rpc, transport
from services.common.lifecycle import Health, Tasks, add_reflection
from services.common.metrics import RpcMetrics

SERVICE = cache_pb2.DESCRIPTOR.services_by_name["CacheService"]
DRAIN_S = 2.0
log = logs.get(__name__)


class CacheService:
    """The `Service` of the cache; `port` is known after `start`."""

    def __init__(self, settings: CacheSettings, registry: CollectorRegistry, tasks: Tasks) -> None:
        metrics = CacheMetrics(registry)
        mesh = settings.mesh_secret()
        self.health = Health(SERVICE.full_name)
        self.tasks = tasks
        self.port = 0
        self._settings = settings
        self._valkey = Valkey(settings, metrics) if settings.valkey_url else None
        self._store = Store(settings, metrics, self._valkey)
        self._server = transport.server()
        servicer = self._servicer(metrics)
        registrar = rpc.Registrar(self._server, RpcMetrics(registry), mesh)
        registrar.add(SERVICE, servicer, members_only="cache")
        self.health.add_to(self._server)
        add_reflection(self._server, SERVICE.full_name)

    async def start(self) -> None:
        """Opens the listener; Valkey is looked for beside it."""
        settings = self._settings
        self.port = transport.listen(self._server, settings.listener())
        self._store.start(self.tasks)
        await self._server.start()
        log.info("listening", listen=settings.listen, port=self.port, valkey=self._valkey is not None)

    async def drain(self) -> None:
        """Lets the calls under way end."""
        await self._server.stop(DRAIN_S)

    async def stop(self) -> None:
        """Closes the listener and the connections."""
        await self._server.stop(0)
        if self._valkey is not None:
            await self._valkey.close()

    def _servicer(self, metrics: CacheMetrics) -> CacheServicer:
        quotas = snapshots = None
        if self._valkey is not None:
            quotas = Quotas(self._valkey, metrics, self._settings.lease_ms)
            snapshots = Snapshots(self._valkey)
        return CacheServicer(self._store, quotas, snapshots, self._settings.snapshot_bytes)
