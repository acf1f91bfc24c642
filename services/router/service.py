"""The router process: two servers, the public one for clients and the mesh one for workers and operators."""

from __future__ import annotations

import asyncio
import secrets
import socket
import tempfile
from pathlib import Path

from headrace.v1 import admin_pb2, router_pb2, session_pb2
from prometheus_client import CollectorRegistry

from services.common import descriptors, errors, lifecycle, logs, transport
from services.common.loop import let_the_loop_go_first
from services.common.members import read_secret
from services.common.rpc import Registrar
from services.common.scope import KEY_BYTES, Keyring
from services.common.settings import SettingsError, of_file, variable
from services.router.access import Access
from services.router.admin import AdminServicer
from services.router.caching import CacheClient
from services.router.continuity.resumption import Resumption
from services.router.dispatcher import Dispatcher
from services.router.encode_calls import EncodeCalls
from services.router.encoding import Encoder, InEncoding
from services.router.front_door import RouterServicer
from services.router.limits import Gate
from services.router.metrics import RouterMetrics
from services.router.models import ModelBook
from services.router.policy.classify import OutputHistory
from services.router.preparation import Preparation
from services.router.quotas import Leaser, Quotas
from services.router.reception import Reception
from services.router.sessions.servicer import SessionServicer
from services.router.sessions.workers import Workers
from services.router.settings import RouterSettings
from services.router.tokenizers import TokenizerPool

ROUTER = router_pb2.DESCRIPTOR.services_by_name["RouterService"]
SESSION = session_pb2.DESCRIPTOR.services_by_name["SessionService"]
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
_FIRST_LOOK_S = 0.2
_STOP_GRACE_S = 0.5
log = logs.get(__name__)


class RouterService:
    """Composition and phases; what happens to a request is told in `front_door`."""

    def __init__(self, settings: RouterSettings, registry: CollectorRegistry, tasks: lifecycle.Tasks) -> None:
        """Raises SettingsError."""
        self.tasks = tasks
        self.health = lifecycle.Health(ROUTER.full_name, SESSION.full_name)
        self.port = 0
        self.mesh_port = 0
        self._settings = settings
        self._mesh = settings.mesh_secret()
        self._access = _access(settings)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._metrics = metrics = RouterMetrics(registry)
        self._pool = TokenizerPool(settings.tokenizers, settings.mesh_tls, self._mesh)
        self._models = ModelBook(self._pool)
        self._cache = self._cache_client()
        quotas = Quotas(routers=len({*settings.siblings, settings.advertise or settings.mesh_listen}))
        self._dispatcher = Dispatcher(settings, Workers(), metrics, quotas)
        self._keys = self._keyring()
        self._leaser = self._quota_leaser(quotas)
        self._gate = Gate(settings.limits.queued_bytes, quotas)
        self._reception = Reception(self._access, self._gate, settings.limits)
        self._public = transport.server(
            reuse_port=settings.shared_port, most_connections=descriptors.for_clients()
        )
        self._internal = transport.server()
        self._sessions = SessionServicer(
            self._mesh, self._models, self._dispatcher, tasks, settings.session, metrics
        )
        self._register()

    async def start(self) -> None:
        """Opens both listeners; the public one when a tokenizer service is there or was waited for enough."""
        settings = self._settings
        if settings.own_cores:
            let_the_loop_go_first()
        self._check_public()
        internal = settings.listener("mesh_listen")
        transport.check_listener(internal)
        self.port = transport.listen(self._public, settings.listener(tls=settings.tls))
        self.mesh_port = transport.listen(self._internal, internal)
        self._name_itself()
        self.tasks.spawn(self._dispatcher.housekeeping.run(), "housekeeping")
        self.tasks.spawn(self._access.follow(), "access")
        await self._internal.start()
        await self._wait_for_tokenizer()
        await self._public.start()
        if self._cache is not None:
            self.tasks.spawn(self._cache.run(), "cache stores")
        if self._leaser is not None:
            self._leaser.router_id = self._sessions.router_id
            self.tasks.spawn(self._leaser.run(), "quota leases")
        log.info("listening", port=self.port, mesh_port=self.mesh_port, keys_needed=self._access.guarded)

    async def drain(self) -> None:
        """Takes no new requests; returns when the running ones have ended."""
        self._reception.draining = True
        await self._gate.emptied()

    async def stop(self) -> None:
        """Ends what still runs, with a status that says so."""
        self._reception.draining = True
        self._dispatcher.close()
        await asyncio.gather(self._public.stop(_STOP_GRACE_S), self._internal.stop(_STOP_GRACE_S))
        await self._pool.close()
        if self._cache is not None:
            await self._cache.close()
        if self._leaser is not None:
            await self._leaser.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _register(self) -> None:
        settings, dispatcher, rpc = self._settings, self._dispatcher, self._metrics.rpc
        history = OutputHistory()
        in_encoding = InEncoding(settings.limits.encoding_bytes)
        calls = EncodeCalls(self._pool.encode, self.tasks.spawn)
        encoder = Encoder(calls, self._cache, settings.caching.long_text_bytes, in_encoding)
        preparation = Preparation(
            settings, self._models, encoder, dispatcher.workers, self._keys, self._cache, history
        )
        resumption = Resumption(settings, self._models, self._keys, preparation, dispatcher, self._metrics)
        front_door = RouterServicer(
            settings,
            self._reception,
            preparation,
            resumption,
            self._models,
            dispatcher,
            self._cache,
            history,
            self._metrics,
        )
        Registrar(self._public, rpc, stall_s=settings.slow_reader.stall_s).add(ROUTER, front_door)
        internal = Registrar(self._internal, rpc, self._mesh)
        internal.add(SESSION, self._sessions)
        internal.add(ADMIN, AdminServicer(dispatcher.workers), members_only="admin")
        self.health.add_to(self._public)
        self.health.add_to(self._internal)
        lifecycle.add_reflection(self._public, ROUTER.full_name)

    def _check_public(self) -> None:
        """Without keys everybody is let in, so only this machine may reach the port."""
        listen = self._settings.listen
        if self._access.guarded:
            return
        if not transport.is_loopback(listen):
            address, keys = (variable(self._settings, each) for each in ("listen", "keys_file"))
            raise SettingsError(
                f"{address} = {listen!r}: without API keys only a loopback address is allowed; "
                f"set {keys} (`headrace keys create` makes keys)"
            )
        log.warning("no_api_keys", listen=listen, meaning="everybody on this machine may use the mesh")

    def _name_itself(self) -> None:
        host = self._settings.mesh_listen.rpartition(":")[0]
        address = self._settings.advertise or f"{host}:{self.mesh_port}"
        self._sessions.router_id = self._settings.router_id or f"{socket.gethostname()}:{self.mesh_port}"
        self._sessions.siblings = (address, *(each for each in self._settings.siblings if each != address))

    async def _wait_for_tokenizer(self) -> None:
        meeting = self.tasks.spawn(self._meet_first_model(), "first model")
        await asyncio.wait([meeting], timeout=self._settings.tokenizer_wait_s)
        if not meeting.done():
            log.warning("no_tokenizer_yet", tokenizers=self._settings.tokenizers)

    async def _meet_first_model(self) -> None:
        """Learns the only model early, so that it is listed before anybody asks for it."""
        while not self._models.known():
            try:
                await self._models.find(None)
            except errors.HeadraceError as error:
                log.debug("no_model_yet", why=error.reason)
                await asyncio.sleep(_FIRST_LOOK_S)

    def _cache_client(self) -> CacheClient | None:
        settings = self._settings
        if settings.cache is None:
            return None
        return CacheClient(settings.cache, settings.mesh_tls, self._mesh, settings.caching, self._metrics)

    def _quota_leaser(self, quotas: Quotas) -> Leaser | None:
        settings = self._settings
        if settings.cache is None:
            return None
        return Leaser(
            quotas, settings.cache, settings.mesh_tls, self._mesh, self._tag_of_tenant, self._metrics
        )

    def _tag_of_tenant(self, name: str) -> bytes:
        return self._keys.tenant(name).tag

    def _keyring(self) -> Keyring:
        """The tenants' keys; passing ones where no master secret is set."""
        settings = self._settings
        if settings.master_secret_file is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="headrace-salts-")
            return Keyring(secrets.token_bytes(KEY_BYTES), Path(self._temporary.name))
        if settings.salts_directory is None:
            raise SettingsError(
                f"{variable(settings, 'salts_directory')} is not set: where tenants' salts are"
            )
        try:
            return Keyring(read_secret(settings.master_secret_file), settings.salts_directory)
        except (OSError, ValueError) as error:
            raise SettingsError(f"{variable(settings, 'master_secret_file')}: {of_file(error)}") from None


def _access(settings: RouterSettings) -> Access:
    try:
        return Access(settings.keys_file, settings.tenants_file)
    except (ValueError, OSError) as error:
        raise SettingsError(str(error)) from None
