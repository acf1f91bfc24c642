"""Who calls the public port: API keys, and what each tenant may do.

A key reads `hr_<id>_<secret>`: the id finds the entry, the secret has 256 random bits. The keys file holds
the SHA-256 of the whole key (random enough to need no slow hash) and never the key.

    keys.toml       [[keys]] id, sha256, tenant, created         written by `headrace keys create`
    tenants.toml    [tenants.NAME] weight, max_class, quotas     written by the operator

Each is read again when it changes. One that became unreadable or wrong is said so in the log; what it said
before stays in force, and the other file is followed.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from services.common.errors import Unauthenticated
from services.common.scope import check_tenant_name

LOCAL_TENANT = "local"
METADATA_KEY = "authorization"
Entry = TypeVar("Entry", bound=BaseModel)
Section = TypeVar("Section", list[Any], dict[str, Any])
_KEY = re.compile(r"hr_([0-9a-f]{12})_([0-9a-f]{64})")


class Targets(BaseModel):
    """A class's targets where a tenant has its own; unset: as deployed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttft_s: float | None = Field(default=None, gt=0, description="first token within this time, in seconds")
    tpot_s: float | None = Field(default=None, gt=0, description="time between tokens, in seconds")

    @model_validator(mode="after")
    def _can_hold(self) -> Self:
        if self.ttft_s is not None and self.tpot_s is not None and self.tpot_s > self.ttft_s:
            raise ValueError(f"tpot_s {self.tpot_s:g} is longer than ttft_s {self.ttft_s:g}")
        return self


class Tenant(BaseModel):
    """What a tenant may do. Unset quotas are unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    weight: float = Field(default=1.0, gt=0, le=1000, description="share against other tenants")
    max_class: Literal["interactive", "standard", "batch"] = Field(
        default="interactive", description="the most urgent class that it may use"
    )
    concurrent_requests: int | None = Field(default=None, ge=1, description="requests at one time")
    requests_per_minute: float | None = Field(default=None, gt=0, description="requests a minute")
    tokens_per_minute: float | None = Field(
        default=None, gt=0, description="prompt and output tokens a minute"
    )
    kv_share: float | None = Field(
        default=None, gt=0, le=1, description="part of a pool's KV memory that its requests may hold"
    )
    queued_bytes: int = Field(default=64 << 20, ge=1, description="bytes of prompts waiting at one time")
    queued_requests: int = Field(default=1000, ge=1, description="requests waiting at one time")
    interactive_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="part of a pool's GPU seconds that may run as INTERACTIVE; unset: by weight, under load",
    )
    sheddable: bool = Field(default=False, description="whether its requests may be refused first")
    interactive: Targets = Targets()
    standard: Targets = Targets()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for what in ("ttft_s", "tpot_s"):
            urgent, other = getattr(self.interactive, what), getattr(self.standard, what)
            if urgent is not None and other is not None and other < urgent:
                raise ValueError(f"standard.{what} {other:g} is shorter than interactive.{what} {urgent:g}")
        return self


class ApiKey(BaseModel):
    """A stored key: everything but the key itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tenant: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    created: str


@dataclass(frozen=True)
class Directory:
    """Keys and tenants at one moment."""

    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    guarded: bool = False
    """Whether a key is needed: there is a keys file, even one without keys."""

    def authenticate(self, authorization: str | bytes | None) -> Tenant:
        """The tenant whose key is shown as `Bearer hr_…`. Without a keys file everybody is "local".

        Raises:
            Unauthenticated: no key, a malformed one, or one that is not known.
        """
        if not self.guarded:
            return self.tenant(LOCAL_TENANT)
        if not authorization:
            raise Unauthenticated(
                "an API key is needed: metadata 'authorization: Bearer hr_…'", reason="NO_KEY"
            )
        shown = authorization.decode("latin-1") if isinstance(authorization, bytes) else authorization
        match = _KEY.fullmatch(shown.removeprefix("Bearer ").strip())
        entry = self.keys.get(match.group(1)) if match else None
        if match is None or entry is None or not hmac.compare_digest(entry.sha256, _digest(match.group(0))):
            raise Unauthenticated("this API key is not known", reason="WRONG_KEY")
        return self.tenant(entry.tenant)

    def tenant(self, name: str) -> Tenant:
        """What the tenant may do; the defaults for one that the tenants file does not mention."""
        return self.tenants.get(name) or _unmentioned(name)


@lru_cache(maxsize=4096)
def _unmentioned(name: str) -> Tenant:
    return Tenant(name=name)


def load(keys_file: Path | None, tenants_file: Path | None) -> Directory:
    """Reads both files. Without a keys file no key is needed; an empty one lets nobody in.

    Raises:
        ValueError: a file is wrong; the message is one line that names file, place and what is allowed.
    """
    guarded = keys_file is not None and keys_file.exists()
    entries = _section(keys_file, "keys", list)
    tables = _section(tenants_file, "tenants", dict)
    keys = [_parse(ApiKey, entry, keys_file) for entry in entries]
    for name in tables:
        _check_name(name, tenants_file)
    tenants = {
        name: _parse(Tenant, _named(name, table, tenants_file), tenants_file)
        for name, table in tables.items()
    }
    return Directory({key.id: key for key in keys}, tenants, guarded)


def create_key(keys_file: Path, tenant: str) -> str:
    """Makes a key for the tenant, stores its digest, and returns the key: the only time that it is seen.

    Raises:
        ValueError: not a tenant's name. OSError: the file cannot be written.
    """
    check_tenant_name(tenant)
    identifier, key = _new_key()
    entry = (
        f'[[keys]]\nid = "{identifier}"\nsha256 = "{_digest(key)}"\ntenant = "{tenant}"\n'
        f'created = "{datetime.now(UTC).isoformat(timespec="seconds")}"\n\n'
    )
    keys_file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(keys_file):
        before = keys_file.read_text() if keys_file.exists() else ""
        _replace(keys_file, before + entry)
    return key


def revoke_key(keys_file: Path, identifier: str) -> bool:
    """Removes the key with this id. Returns whether there was one."""
    with _locked(keys_file):
        before = re.split(r"(?=^\[\[keys\]\])", keys_file.read_text(), flags=re.M)
        after = [part for part in before if f'id = "{identifier}"' not in part]
        _replace(keys_file, "".join(after))
    return len(after) < len(before)


def _new_key() -> tuple[str, str]:
    identifier = secrets.token_hex(6)
    return identifier, f"hr_{identifier}_{secrets.token_hex(32)}"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@contextmanager
def _locked(keys_file: Path) -> Iterator[None]:
    """One writer at a time; readers see the file before or after, never in between."""
    descriptor = os.open(keys_file.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:  # mkstemp's mode is 0600
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        raise OSError(error.errno, error.strerror, str(path)) from None


def _section(path: Path | None, name: str, kind: type[Section]) -> Section:
    tables = _read(path)
    if strange := sorted(tables.keys() - {name}):
        raise ValueError(
            f"{path}: {strange[0]}: only {'[[keys]]' if kind is list else '[tenants.NAME]'} may stand there"
        )
    found = tables.get(name, kind())
    if not isinstance(found, kind):
        raise ValueError(f"{path}: {name}: must be {'[[keys]] tables' if kind is list else 'tables'}")
    return found


def _check_name(name: str, path: Path | None) -> None:
    try:
        check_tenant_name(name)
    except ValueError as error:
        raise ValueError(f"{path}: {name!r}: {error}") from None


def _named(name: str, table: object, path: Path | None) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ValueError(f"{path}: {name}: must be a table, [tenants.{name}]")
    return {**table, "name": name}


def _read(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from None


def _parse(kind: type[Entry], table: object, path: Path | None) -> Entry:
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        owner = (table.get("name") or table.get("id")) if isinstance(table, dict) else "?"
        where = ": ".join(str(each) for each in (path, owner, place) if each)
        raise ValueError(f"{where}: {_what(kind, first)}") from None


def _what(kind: type[BaseModel], error: ErrorDetails) -> str:
    """What is wrong with one entry, in words that say what is allowed."""
    if error["type"] == "extra_forbidden":
        known = kind.model_fields if len(error["loc"]) == 1 else Targets.model_fields
        return f"no such setting; there are {', '.join(name for name in known if name != 'name')}"
    given = "" if isinstance(error["input"], dict) else f", not {error['input']!r}"
    return error["msg"].removeprefix("Value error, ") + given
