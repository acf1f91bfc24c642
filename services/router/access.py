"""Who may call the public port: the keys and tenants files, read again when they change."""

from __future__ import annotations

import time
from pathlib import Path

from services.common import identity, logs, rpc
from services.common.errors import Unauthenticated
from services.common.identity import Tenant

CHECK_S = 0.2
log = logs.get(__name__)
_Stamp = tuple[tuple[int, int] | None, ...]


class Access:
    """Authenticates calls. Once there were keys, losing them all lets nobody in instead of everybody."""

    def __init__(self, keys_file: Path | None, tenants_file: Path | None) -> None:
        """Raises ValueError when a file is wrong."""
        self._files = (keys_file, tenants_file)
        self._stamp = self._stamps()
        self._directory = identity.load(keys_file, tenants_file)
        self._guarded = self._directory.guarded
        self._checked_s = time.monotonic()

    @property
    def guarded(self) -> bool:
        """Whether a key is needed."""
        return self._guarded

    def tenant(self, context: rpc.Context) -> Tenant:
        """The caller's tenant. Raises Unauthenticated."""
        self._reread()
        if self._guarded and not self._directory.keys:
            raise Unauthenticated(
                "no API key is left: `headrace keys create TENANT` makes one", reason="WRONG_KEY"
            )
        return self._directory.authenticate(rpc.metadata_value(context, identity.METADATA_KEY))

    def _reread(self) -> None:
        now = time.monotonic()
        if now - self._checked_s < CHECK_S:
            return
        self._checked_s = now
        stamp = self._stamps()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._directory = identity.load(*self._files)
        except (ValueError, OSError) as error:
            log.error("identity_not_reread", error=str(error))
            return
        self._guarded = self._guarded or self._directory.guarded
        log.info("identity_reread", keys=len(self._directory.keys), tenants=len(self._directory.tenants))

    def _stamps(self) -> _Stamp:
        return tuple(None if path is None else _modified(path) for path in self._files)


def _modified(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
