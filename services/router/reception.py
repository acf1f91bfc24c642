"""A call's arrival: who asks, what is asked, is it allowed. Nothing is spent on it before that."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from headrace.v1 import router_pb2

from services.common import errors
from services.common.identity import METADATA_KEY, Tenant
from services.common.rpc import Context, metadata
from services.router import validation
from services.router.access import Access
from services.router.class_settings import ClassSettings
from services.router.journal import Refusals
from services.router.limits import Gate, Pass
from services.router.policy import LatencyClass, classify
from services.router.policy.classify import Verdict
from services.router.relay.flight import Flight
from services.router.relay.outlet import Flush
from services.router.responses import ResponseKeys
from services.router.settings import LimitSettings
from services.router.validation import Accepted

RETRY_S = 1.0
_CLASS = {each.name.lower(): each for each in LatencyClass}


@dataclass(slots=True, kw_only=True)
class Visit:
    """One call, from its arrival to its end. Times are seconds of the monotonic clock."""

    request: router_pb2.GenerateRequest
    accepted: Accepted
    tenant: Tenant
    shares: Pass
    streaming: bool
    verdict: Verdict
    arrival_s: float
    deadline_s: float | None
    traceparent: str
    flight: Flight | None = None
    keys: ResponseKeys | None = None
    """Where its answer may be kept."""
    charged_tokens: int = 0
    """Of its output, those that another call was charged for."""
    complete: bool = False
    """Its final event is on its way: it ended well, also where the client hangs up before the status."""

    @property
    def latency_class(self) -> LatencyClass:
        """The class that it runs in."""
        return self.verdict.latency_class

    def flush(self, defaults: ClassSettings) -> Flush:
        """When waiting tokens go to its client."""
        delay_s = self.accepted.flush_delay_s
        return Flush(
            defaults.flush_delay_s if delay_s is None else delay_s,
            self.accepted.flush_tokens or defaults.flush_tokens,
        )

    def remaining_s(self, limit_s: float) -> float:
        """Time that is left, at most `limit_s`. Raises DeadlineExceeded when there is none."""
        if self.deadline_s is None:
            return limit_s
        left = self.deadline_s - time.monotonic()
        if left <= 0:
            raise _too_late()
        return min(limit_s, left)


class Reception:
    """Lets calls in."""

    def __init__(self, access: Access, gate: Gate, limits: LimitSettings) -> None:
        self.draining = False
        self._access = access
        self._gate = gate
        self._limits = limits
        self._refusals = Refusals()

    def tenant(self, context: Context) -> Tenant:
        """The caller's tenant. Raises Unauthenticated; Unavailable while draining."""
        return self._tenant(metadata(context))

    def enter(self, request: router_pb2.GenerateRequest, context: Context, *, streaming: bool) -> Visit:
        """Takes a call in; its `shares` must be given back.

        Raises:
            Unauthenticated, Unavailable, InvalidArgument, AlreadyExists, ResourceExhausted, DeadlineExceeded.
        """
        told = metadata(context)
        tenant = self._tenant(told)
        try:
            return self._let_in(request, tenant, told, context, streaming)
        except errors.HeadraceError as error:
            self._refusals.note(tenant.name, error)
            raise

    def _let_in(
        self,
        request: router_pb2.GenerateRequest,
        tenant: Tenant,
        told: Mapping[str, str | bytes],
        context: Context,
        streaming: bool,
    ) -> Visit:
        size = validation.size(request, self._limits)
        accepted = validation.accept(request, self._limits)
        arrival_s = time.monotonic()
        left_s = _time_left(accepted, context)
        return Visit(
            request=request,
            accepted=accepted,
            tenant=tenant,
            shares=self._gate.enter(tenant, _name(request, accepted), size),
            streaming=streaming,
            verdict=classify(
                accepted.latency_class,
                streaming=streaming,
                deadline_s=left_s,
                most_urgent=_CLASS[tenant.max_class],
            ),
            arrival_s=arrival_s,
            deadline_s=None if left_s is None else arrival_s + left_s,
            traceparent=_text(told.get("traceparent")),
        )

    @contextmanager
    def shares(self, tenant: Tenant, size: int) -> Iterator[Pass]:
        """What a call of `size` bytes that generates nothing holds until it ends, as every other call.

        Raises:
            ResourceExhausted: the tenant has too much at once or in a minute, or too much waits in all.
        """
        shares = self._gate.enter(tenant, secrets.token_hex(12), size)
        try:
            yield shares
        finally:
            shares.leave()

    def _tenant(self, told: Mapping[str, str | bytes]) -> Tenant:
        tenant = self._access.tenant(told.get(METADATA_KEY))
        if self.draining:
            raise errors.Unavailable("this router is leaving", reason="DRAINING", retry_s=RETRY_S)
        return tenant


def _name(request: router_pb2.GenerateRequest, accepted: Accepted) -> str:
    """Unique among the tenant's running requests: the call that is taken up may still be one of them."""
    return f"resume\0{secrets.token_hex(12)}" if request.HasField("resume") else accepted.request_id


def _time_left(accepted: Accepted, context: Context) -> float | None:
    """The sooner of the call's deadline and the request's own, in seconds from now."""
    left_s, own_s = context.time_remaining(), accepted.completion_s
    if left_s is None or (own_s is not None and own_s < left_s):
        left_s = own_s
    if left_s is not None and left_s <= 0:
        raise _too_late()
    return left_s


def _text(value: str | bytes | None) -> str:
    found = value.decode("latin-1") if isinstance(value, bytes) else value or ""
    return found[:64]


def _too_late() -> errors.DeadlineExceeded:
    return errors.DeadlineExceeded("the deadline passed before the request could be queued")
