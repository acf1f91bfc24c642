"""Who may call the public port: the keys and tenants files, each read again when it changes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from services.common import identity, logs
from services.common.errors import Unauthenticated
from services.common.identity import Tenant

CHECK_S = 0.2
LOOK_S = 1.0
log = logs.get(__name__)
_Stamp = tuple[int, int] | None


class Access:
    """Authenticates calls. Once there were keys, losing them all lets nobody in instead of everybody."""

    def __init__(self, keys_file: Path | None, tenants_file: Path | None) -> None:
        """Raises ValueError when a file is wrong."""
        self._files = (keys_file, tenants_file)
        self._stamps = self._seen()
        self._directory = identity.load(keys_file, tenants_file)
        self._guarded = self._directory.guarded
        self._checked_s = time.monotonic()

    @property
    def guarded(self) -> bool:
        """Whether a key is needed."""
        return self._guarded

    def tenant(self, authorization: str | bytes | None) -> Tenant:
        """The tenant of a caller who shows this. Raises Unauthenticated."""
        self._reread()
        if self._guarded and not self._directory.keys:
            raise Unauthenticated(
                "no API key is left: `headrace keys create TENANT` makes one", reason="WRONG_KEY"
            )
        return self._directory.authenticate(authorization)

    async def follow(self) -> None:
        """Looks for ever, so that the log says what is wrong in a file before somebody calls."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._reread()

    def _reread(self) -> None:
        now = time.monotonic()
        if now - self._checked_s < CHECK_S:
            return
        self._checked_s = now
        stamps = self._seen()
        if stamps == self._stamps:
            return
        before, self._stamps = self._stamps, stamps
        keys, tenants = self._files
        if stamps[0] != before[0]:
            self._take(keys, None)
        if stamps[1] != before[1]:
            self._take(None, tenants)

    def _take(self, keys_file: Path | None, tenants_file: Path | None) -> None:
        """Takes what one file says now; a wrong one leaves in force what it said before."""
        try:
            found = identity.load(keys_file, tenants_file)
        except (ValueError, OSError) as error:
            log.error("identity_not_reread", error=str(error))
            return
        if keys_file is not None:
            self._directory = replace(self._directory, keys=found.keys, guarded=found.guarded)
        else:
            self._directory = replace(self._directory, tenants=found.tenants)
        self._guarded = self._guarded or self._directory.guarded
        log.info("identity_reread", keys=len(self._directory.keys), tenants=len(self._directory.tenants))

    def _seen(self) -> tuple[_Stamp, _Stamp]:
        keys, tenants = self._files
        return _modified(keys), _modified(tenants)


def _modified(path: Path | None) -> _Stamp:
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size) if found is not None else None
