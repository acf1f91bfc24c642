"""Keys of everything that is cached, so that no tenant can read, probe or guess another's work.

    master secret ──HKDF(salt of the tenant)──▶ tenant key ──HKDF(scope)──▶ scope key ──▶ kv key, a model
     (routers only)                                 │                          ├──▶ MAC of cache keys
                                                    └──▶ tenant tag            └──▶ AES-GCM key of values

Threats and what answers them:

* *A tenant times prompts to learn whether another sent them* (shared prefix or response caches): every key is
  derived under the tenant's own secret, so equal texts of two tenants have unrelated keys everywhere.
* *Somebody reads Valkey, or a dump of it*: keys are MACs and values ciphertext; testing a guess needs the
  tenant key. Every link of a KV block chain is keyed, not only its root, so that a known digest does not let
  anybody confirm the next tokens.
* *A worker or the cache service is taken over*: a worker holds KV keys of the scopes that it served, for its
  model only; the cache service holds none. Neither can derive upwards.
* *Valkey returns another entry's value, or a changed one*: the key is bound to the value as associated data.
* *Fields that run into each other* ("a" + "bc" against "ab" + "c"): all fields are length-framed.
* *A tenant must be forgotten*: destroying the salt makes everything of the tenant unreadable for good.

Salts live in files outside Valkey, one a tenant; a lost salt costs a cold cache, never an answer. A tenant
whose salt can neither be read nor made (the disk is full) is refused: with a passing one each router would
count its quotas for itself, and none could take up another's streams.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.common import logs
from services.common.errors import Unavailable
from services.common.members import frame, read_secret, write_new_secret
from services.common.seldom import Seldom

KEY_BYTES = 32
TAG_BYTES = 16
RETRY_S = 5.0
_NONCE_BYTES = 12
_TENANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
log = logs.get(__name__)


class Keyring:
    """Derives tenants' keys from the master secret and their salts. Only routers have one."""

    def __init__(self, master: bytes, salts: Path) -> None:
        if len(master) < KEY_BYTES:
            raise ValueError(f"the master secret has {len(master)} bytes, at least {KEY_BYTES} are needed")
        self._master = master
        self._salts = salts
        self._tenant = lru_cache(maxsize=4096)(self._derive_tenant)
        self._reports = Seldom()

    def tenant(self, tenant: str) -> TenantKeys:
        """The tenant's keys; makes its salt on first use.

        Raises:
            Unavailable: its salt can neither be read nor made. ValueError: an odd name.
        """
        try:
            return self._tenant(tenant)
        except OSError as error:
            if self._reports.due(tenant, time.monotonic()):
                log.error("no_tenant_keys", tenant=tenant, error=str(error))
            message = "this tenant's keys can neither be read nor made now"
            raise Unavailable(message, reason="NO_TENANT_KEYS", retry_s=RETRY_S) from None

    def forget(self, tenant: str) -> None:
        """Destroys the salt: nothing cached for the tenant can be read again by who lacks a copy."""
        self._salt_path(tenant).unlink(missing_ok=True)
        self._tenant.cache_clear()

    def _derive_tenant(self, tenant: str) -> TenantKeys:
        path = self._salt_path(tenant)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # its files name the tenants
        write_new_secret(path, KEY_BYTES)
        return TenantKeys(_hkdf(self._master, read_secret(path), frame(b"tenant", tenant.encode())))

    def _salt_path(self, tenant: str) -> Path:
        return self._salts / f"{check_tenant_name(tenant)}.salt"


class TenantKeys:
    """What one tenant's key gives."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._scope = lru_cache(maxsize=256)(self._derive_scope)

    @cached_property
    def tag(self) -> bytes:
        """16 bytes that name the tenant to workers and the cache service without telling who it is."""
        return _mac(self._key, b"tag")[:TAG_BYTES]

    def scope(self, user: str | None = None) -> ScopeKeys:
        """Keys of the whole tenant, or of one of its users."""
        return self._scope(user)

    def _derive_scope(self, user: str | None) -> ScopeKeys:
        name = frame(b"scope-tenant") if user is None else frame(b"scope-user", user.encode())
        return ScopeKeys(_mac(self._key, name))


@dataclass(frozen=True)
class ScopeKeys:
    """What one scope's key gives."""

    key: bytes

    @cached_property
    def digest(self) -> bytes:
        """Names the scope to the tokenizer's cache; 16 bytes."""
        return _mac(self.key, b"digest")[:TAG_BYTES]

    def kv_key(self, numerics: bytes) -> bytes:
        """Key of the KV block chains of one model; the only key that a worker gets. 32 bytes."""
        return self._kv_keys(numerics)

    def cache_key(self, kind: str, *fields: bytes) -> bytes:
        """Key of an entry of the cache service, over all that its value depends on. 32 bytes."""
        made = self._begun(kind).copy()
        made.update(frame(*fields))
        return made.digest()

    def seal(self, cache_key: bytes, value: bytes) -> bytes:
        """Encrypts a value so that it opens only under its own cache key."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, cache_key)

    def open(self, cache_key: bytes, sealed: bytes) -> bytes | None:
        """The value, or None when it is not one that `seal` made for this key."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], cache_key)
        except (InvalidTag, ValueError):
            return None

    @cached_property
    def _begun(self) -> Callable[[str], hmac.HMAC]:
        """MACs that know the key and the kind: in a busy router a copy costs 10 µs, to begin anew 35."""
        return lru_cache(maxsize=64)(partial(_begun, self.key))

    @cached_property
    def _kv_keys(self) -> Callable[[bytes], bytes]:
        return lru_cache(maxsize=64)(partial(_mac, self.key, b"kv"))

    @cached_property
    def _cipher(self) -> AESGCM:
        return AESGCM(_mac(self.key, b"values"))


def check_tenant_name(tenant: str) -> str:
    """Returns the name when it is one: letters, digits, '.', '_', '-', at most 63. Raises ValueError."""
    if not _TENANT_NAME.fullmatch(tenant):
        raise ValueError("a tenant's name has 1 to 63 letters, digits, '.', '_' or '-', the first no sign")
    return tenant


def _hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=frame(b"headrace-v1") + info).derive(
        secret
    )


def _mac(key: bytes, *fields: bytes) -> bytes:
    return hmac.digest(key, frame(b"headrace-scope-v1", *fields), "sha256")


def _begun(key: bytes, kind: str) -> hmac.HMAC:
    return hmac.new(key, frame(b"headrace-scope-v1", b"cache-key", kind.encode()), "sha256")
