"""What an operator can choose about the cache service."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from services.common.settings import ListenAddress, ServiceSettings, SettingsError, of_file, variable

SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")


class CacheSettings(ServiceSettings):
    """Settings of one cache service."""

    service: ClassVar[str] = "cache"

    listen: ListenAddress = Field(
        default="127.0.0.1:50063", description="host:port of the internal gRPC listener"
    )
    valkey_url: str | None = Field(
        default=None,
        description="redis://host:port/db, rediss://… (TLS) or unix:///path; unset: memory only",
    )
    valkey_user: str | None = Field(
        default=None, description="name of the Valkey user; unset: the default one"
    )
    valkey_password_file: Path | None = Field(default=None, description="file with the Valkey password")
    l1_bytes: int = Field(default=64 << 20, ge=0, description="memory of this process for values, in bytes")
    l1_max_age_s: float = Field(
        default=300.0,
        gt=0,
        description="longest stay of a value in memory while Valkey is used, in seconds: after it a Forget "
        "that another cache service handled holds here too",
    )
    lookup_budget_ms: float = Field(
        default=5.0, gt=0, description="look-ups that take longer are misses, in milliseconds"
    )
    call_timeout_ms: float = Field(
        default=1000.0, gt=0, description="longest wait for Valkey off the critical path, in milliseconds"
    )
    write_queue_entries: int = Field(default=1000, ge=1, description="entries that may wait to be written")
    write_queue_bytes: int = Field(default=32 << 20, ge=1, description="bytes that may wait to be written")
    tenant_entries: int = Field(
        default=100_000,
        ge=1,
        description="entries a tenant may keep in Valkey; those that end first go first",
    )
    lease_ms: int = Field(default=2000, ge=1, description="how long a leased quota share may be spent")
    snapshot_bytes: int = Field(default=64 << 20, ge=1, description="largest snapshot, in bytes")

    @field_validator("valkey_url")
    @classmethod
    def _known_scheme(cls, url: str | None) -> str | None:
        if url is not None and url.partition("://")[0] not in SCHEMES:
            raise ValueError(f"allowed are {', '.join(scheme + '://…' for scheme in SCHEMES)}")
        return url

    def valkey_password(self) -> str | None:
        """The password, without the line's end. Raises SettingsError when the file cannot be read."""
        if self.valkey_password_file is None:
            return None
        try:
            return self.valkey_password_file.read_text().strip()
        except (OSError, ValueError) as error:
            raise SettingsError(f"{variable(self, 'valkey_password_file')}: {of_file(error)}") from None
