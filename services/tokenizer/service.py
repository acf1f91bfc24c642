"""The tokenizer process: its phases and what it is made of."""

from __future__ import annotations

import asyncio

from headrace.v1 import tokenizer_pb2
from prometheus_client import CollectorRegistry

from services.common import lifecycle, logs, metrics, rpc, transport
from services.common.models import ModelDirectory, ModelError, resolve
from services.tokenizer.batches import Batches
from services.tokenizer.encodings import EncodingCache
from services.tokenizer.metrics import TokenizerMetrics
from services.tokenizer.servicer import TokenizerServicer
from services.tokenizer.settings import TokenizerSettings
from services.tokenizer.text.bounds import PoolLimits
from services.tokenizer.text.encoder import TextEncoder
from services.tokenizer.text.errors import CannotStart, TextError
from services.tokenizer.text.items import TextSpec
from services.tokenizer.text.pool import TextPool

SERVICE = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"]
log = logs.get(__name__)


class TokenizerProcess:
    """Loads the tokenizer, starts the pool, serves."""

    def __init__(
        self, settings: TokenizerSettings, registry: CollectorRegistry, tasks: lifecycle.Tasks
    ) -> None:
        self._settings = settings
        self._metrics = TokenizerMetrics(registry)
        self._rpc_metrics = metrics.RpcMetrics(registry)
        self._server = transport.server()
        self._pool: TextPool | None = None
        self.tasks = tasks
        self.health = lifecycle.Health(SERVICE.full_name)

    async def start(self) -> None:
        """Resolves the model (which may download it) and starts to serve."""
        mesh = self._settings.mesh_secret()
        model = await self._model()
        encoder = self._encoder(model)
        self._pool = await self._started_pool(model)
        batches = Batches(self._pool, self._settings.item_timeout_s, self._metrics)
        cache = EncodingCache(self._settings.encoding_cache_bytes)
        servicer = TokenizerServicer(model, encoder, batches, cache, self._metrics)
        registrar = rpc.Registrar(self._server, self._rpc_metrics, mesh)
        registrar.add(SERVICE, servicer, members_only="tokenizer")
        self.health.add_to(self._server)
        lifecycle.add_reflection(self._server, SERVICE.full_name)
        settings = self._settings
        transport.listen(self._server, settings.listener())
        await self._server.start()

    async def drain(self) -> None:
        """Takes no new calls and lets the running ones end."""
        await self._server.stop(self._settings.drain_timeout_s)

    async def stop(self) -> None:
        """Closes the listener and ends the pool's processes."""
        await self._server.stop(0)
        if self._pool:
            await self._pool.close()

    async def _model(self) -> ModelDirectory:
        try:
            return await asyncio.to_thread(
                resolve, self._settings.model, self._settings.cache_dir, weights=False
            )
        except ModelError as error:
            raise lifecycle.StartError(str(error)) from None

    def _encoder(self, model: ModelDirectory) -> TextEncoder:
        try:
            encoder = TextEncoder(model.tokenizer_json)
        except (TextError, ModelError) as error:
            raise lifecycle.StartError(str(error)) from None
        statistics = encoder.statistics()
        self._metrics.fast_path.set(int(statistics.fast))
        log.info("tokenizer_loaded", model=model.name, fast=statistics.fast, why_not=statistics.why_not)
        return encoder

    async def _started_pool(self, model: ModelDirectory) -> TextPool:
        try:
            limits = PoolLimits(processes=self._settings.processes, queued_jobs=self._settings.queued_items)
            pool = TextPool(TextSpec.of(model), limits)
            await pool.start()
            return pool
        except (CannotStart, ModelError) as error:
            raise lifecycle.StartError(str(error)) from None
