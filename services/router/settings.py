"""What a router can be told."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import NoDecode

from services.common.settings import Address, ListenAddress, ServiceSettings, SettingsGroup
from services.common.transport import Tls
from services.router.class_settings import BatchSettings, ClassSettings, InteractiveSettings, StandardSettings
from services.router.continuity.settings import FailoverSettings
from services.router.policy.classify import LatencyClass
from services.router.sessions.times import SessionTimes

Addresses = Annotated[tuple[Address, ...], NoDecode]


class SchedulingSettings(SettingsGroup):
    """How requests are let in, ordered and placed; docs/operate.md says when to change what."""

    prompt_weight: float = Field(default=1.0, description="weight of a computed prompt token in fairness")
    cached_weight: float = Field(default=0.1, description="weight of a cached prompt token in fairness")
    output_weight: float = Field(default=2.0, description="weight of an output token in fairness")
    locality_credit_tokens: float = Field(
        default=32_768.0, description="weighted tokens that a tenant may be ahead where its prompt is cached"
    )
    admission: bool = Field(default=True, description="whether load refuses requests")
    sheddable_ramp: tuple[float, float] = Field(
        default=(0.9, 1.1), description="head-room used where the first and the last sheddable one is refused"
    )
    refuse_infeasible: bool = Field(
        default=True, description="whether a deadline that cannot be met is refused at once"
    )
    interactive_budget: bool = Field(
        default=True, description="whether tenants' interactive work is bounded while others want some"
    )
    budget_window_s: float = Field(default=60.0, description="time that a budget looks back, in seconds")
    preemption: bool = Field(default=True, description="whether batch work gives way to interactive")
    preempt_after_s: float = Field(
        default=0.1, description="wait of an interactive request until batch work gives way, in seconds"
    )
    warm_share: float = Field(default=0.8, description="of a prompt, cached: such workers come first")
    short_slice: float = Field(default=0.125, description="of sequence slots, kept for short requests")

    @field_validator("sheddable_ramp", mode="before")
    @classmethod
    def _pair(cls, given: object) -> object:
        """Accepts `0.9,1.1` beside a list."""
        return tuple(given.strip("[] ").split(",")) if isinstance(given, str) else given


class LimitSettings(SettingsGroup):
    """Bounds that hold for everybody, whatever a tenant's own quotas say."""

    request_bytes: int = Field(default=4 << 20, ge=1024, description="bytes of one request")
    encoding_bytes: int = Field(
        default=16 << 20, ge=1, description="bytes of one tenant that are encoded at one time"
    )
    grammar_bytes: int = Field(default=32 << 10, ge=1, description="bytes of one grammar")
    queued_bytes: int = Field(
        default=512 << 20,
        ge=1,
        description="bytes of all requests that wait; a part of them is kept for who comes next",
    )
    queued_requests: int = Field(
        default=20_000, ge=1, description="requests that wait; a part of them is kept for who comes next"
    )
    resumes: int = Field(default=2, ge=0, description="lost workers that one request survives")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if faults := list(self._faults()):
            raise ValueError("\n".join(faults))
        return self

    def _faults(self) -> Iterator[str]:
        if self.request_bytes > self.queued_bytes:
            yield (
                f"queued_bytes {self.queued_bytes} is less than request_bytes {self.request_bytes}: "
                "the largest request could never wait"
            )
        if self.grammar_bytes > self.request_bytes:
            yield f"grammar_bytes {self.grammar_bytes} is more than request_bytes {self.request_bytes}"


class SlowReaderSettings(SettingsGroup):
    """When a client that does not read is given up."""

    unsent_tokens: int = Field(default=4096, ge=1, description="tokens that wait while a write is stuck")
    stall_s: float = Field(default=10.0, gt=0, description="how long one write may be stuck")


class CacheSettings(SettingsGroup):
    """How the cache service is used."""

    lookup_s: float = Field(default=0.005, gt=0, description="a look-up is abandoned after this time")
    ttl_s: int = Field(default=86_400, ge=1, description="seconds to keep an entry")
    queue: int = Field(default=256, ge=1, description="entries that wait to be stored")
    value_bytes: int = Field(default=256 << 10, ge=1, description="largest value that is stored")
    long_text_bytes: int = Field(default=4096, ge=1, description="texts beyond this have their ids cached")


class RouterSettings(ServiceSettings):
    """Settings of one router process."""

    service: ClassVar[str] = "router"

    listen: ListenAddress = Field(default="127.0.0.1:50051", description="host:port for clients")
    processes: int = Field(
        default=1,
        ge=1,
        le=256,
        description="router processes behind the public port; metrics ports count up, "
        "mesh and advertised ones by tens",
    )
    own_cores: bool = Field(
        default=False,
        description="whether nothing else computes on the router's cores: a streamed token costs less CPU, "
        "but beside engines on the same cores first tokens would wait",
    )
    public_ports: Literal["shared", "counted"] = Field(
        default="shared",
        description="several processes: one port for all (SO_REUSEPORT), or counted up, for a proxy",
    )
    shared_port: bool = Field(
        default=False, description="whether other processes listen on the public port, too (SO_REUSEPORT)"
    )
    mesh_listen: ListenAddress = Field(
        default="127.0.0.1:50061", description="host:port for workers and operators"
    )
    advertise: Address | None = Field(
        default=None, description="host:port that workers reach mesh_listen under; unset: mesh_listen"
    )
    siblings: Addresses = Field(default=(), description="host:port of the other routers' mesh ports")
    tls_certificate: Path | None = Field(default=None, description="PEM certificate of the public port")
    tls_key: Path | None = Field(default=None, description="PEM key of tls_certificate")
    tokenizers: Addresses = Field(default=("127.0.0.1:50062",), description="host:port of tokenizers")
    cache: Address | None = Field(
        default=None, description="host:port of the cache service; unset: no caches"
    )
    master_secret_file: Path | None = Field(
        default=None, description="secret that keys of everything cached derive from; unset: a passing one"
    )
    salts_directory: Path | None = Field(default=None, description="directory with one salt a tenant")
    keys_file: Path | None = Field(default=None, description="API keys; unset: everybody on this machine")
    tenants_file: Path | None = Field(default=None, description="what tenants may do")
    tokenizer_wait_s: float = Field(
        default=10.0, ge=0, description="how long the start waits for a tokenizer, in seconds; then it serves"
    )
    encode_timeout_s: float = Field(default=30.0, gt=0, description="longest encoding, in seconds")
    router_id: str | None = Field(default=None, description="name in logs; unset: made from host and port")

    interactive: InteractiveSettings = InteractiveSettings()
    standard: StandardSettings = StandardSettings()
    batch: BatchSettings = BatchSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    limits: LimitSettings = LimitSettings()
    session: SessionTimes = SessionTimes()
    failover: FailoverSettings = Field(default=FailoverSettings(), validate_default=True)
    slow_reader: SlowReaderSettings = SlowReaderSettings()
    caching: CacheSettings = CacheSettings()

    @field_validator("tokenizers", "siblings", mode="before")
    @classmethod
    def _addresses(cls, given: object) -> object:
        """Accepts `a:1,b:2` beside a list."""
        if isinstance(given, str):
            return tuple(part.strip(" \"'") for part in given.strip("[] ").split(",") if part.strip())
        return given

    @field_validator("failover")
    @classmethod
    def _worth_waiting(cls, failover: FailoverSettings, told: ValidationInfo) -> FailoverSettings:
        """A worker that is back after it has dropped its requests is back for nothing."""
        times: SessionTimes | None = told.data.get("session")
        if times is not None and failover.return_s >= times.kept_s:
            raise ValueError(
                f"return_s {failover.return_s:g} is not less than the {times.kept_s:g} s for which workers "
                "keep requests (session.resume_grace_s, session.orphan_hold_s)"
            )
        return failover

    @field_validator("salts_directory")
    @classmethod
    def _can_be_directory(cls, path: Path | None) -> Path | None:
        """It is made on first use; what is there already must be one."""
        there = path and next((each for each in (path, *path.parents) if each.exists()), None)
        if there and not there.is_dir():
            raise ValueError(f"{there} is no directory")
        return path

    @property
    def tls(self) -> Tls:
        """TLS of the public port."""
        return Tls(certificate=self.tls_certificate, key=self.tls_key)

    @cached_property
    def classes(self) -> dict[LatencyClass, ClassSettings]:
        """Settings by class."""
        return {
            LatencyClass.INTERACTIVE: self.interactive,
            LatencyClass.STANDARD: self.standard,
            LatencyClass.BATCH: self.batch,
        }
