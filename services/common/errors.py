"""Everything that a caller can be told, as exceptions, and the table from each to its gRPC status.

    HeadraceError
    ├── InvalidArgument        a field is wrong; names it
    ├── NotFound               model, worker, a stream to resume
    ├── AlreadyExists          a request id that is running
    ├── Unauthenticated        no key, wrong key, stranger on an internal port
    ├── PermissionDenied       another tenant's
    ├── FailedPrecondition     the state forbids it
    ├── Unimplemented          this worker or build cannot
    ├── ResourceExhausted      with the reason and when to retry
    │   ├── Overloaded
    │   ├── QuotaExceeded
    │   ├── DeadlineInfeasible
    │   └── SlowConsumer
    ├── DeadlineExceeded
    ├── Unavailable            nobody is there to do it; when to retry
    ├── Aborted                a stream was lost after it began
    ├── Cancelled              the caller, or the mesh on its behalf, gave up
    └── Internal               our own fault

Messages are for callers: they never hold a prompt, an answer, a key or a path.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "headrace"
DETAILS_KEY = "grpc-status-details-bin"
MOST_VIOLATIONS, MOST_CHARACTERS = 10, 256
"""Trailers have room for 8 KiB: what does not fit would cost the caller the whole status."""
PUSHBACK_KEY = "grpc-retry-pushback-ms"


class FieldViolation(NamedTuple):
    """A field of the request, by its path, and what is allowed there."""

    field: str
    description: str


class HeadraceError(Exception):
    """Base of all errors that end an RPC. `reason` is a stable word for programs."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: str = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.message = _cut(message, 2 * MOST_CHARACTERS)
        self.reason = reason or type(self).reason
        self.retry_s = retry_s

    def details(self) -> list[message.Message]:
        """The google.rpc details that go with the status."""
        found: list[message.Message] = [error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN)]
        if self.retry_s is not None:
            found.append(error_details_pb2.RetryInfo(retry_delay=_duration(self.retry_s)))
        return found


class InvalidArgument(HeadraceError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"

    def __init__(self, *violations: FieldViolation) -> None:
        self.violations = tuple(
            FieldViolation(_cut(each.field), _cut(each.description)) for each in violations[:MOST_VIOLATIONS]
        )
        super().__init__("; ".join(f"{each.field}: {each.description}" for each in self.violations))

    def details(self) -> list[message.Message]:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=each.field, description=each.description)
            for each in self.violations
        ]
        return [*super().details(), error_details_pb2.BadRequest(field_violations=fields)]


class NotFound(HeadraceError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"

    def __init__(self, message: str, *, kind: str, name: str, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.kind, self.name = kind, _cut(name)

    def details(self) -> list[message.Message]:
        resource = error_details_pb2.ResourceInfo(resource_type=self.kind, resource_name=self.name)
        return [*super().details(), resource]


class AlreadyExists(HeadraceError):
    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class Unauthenticated(HeadraceError):
    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(HeadraceError):
    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class FailedPrecondition(HeadraceError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class Unimplemented(HeadraceError):
    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class ResourceExhausted(HeadraceError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class Overloaded(ResourceExhausted):
    reason = "OVERLOADED"


class QuotaExceeded(ResourceExhausted):
    reason = "QUOTA_EXCEEDED"

    def details(self) -> list[message.Message]:
        violation = error_details_pb2.QuotaFailure.Violation(subject="tenant", description=self.message)
        return [*super().details(), error_details_pb2.QuotaFailure(violations=[violation])]


class DeadlineInfeasible(ResourceExhausted):
    reason = "DEADLINE_INFEASIBLE"


class SlowConsumer(ResourceExhausted):
    reason = "SLOW_CONSUMER"


class DeadlineExceeded(HeadraceError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unavailable(HeadraceError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"


class Aborted(HeadraceError):
    code = grpc.StatusCode.ABORTED
    reason = "STREAM_LOST"


class Cancelled(HeadraceError):
    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class Internal(HeadraceError):
    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


class Aborting(Protocol):
    """The part of a servicer context that ends an RPC."""

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: tuple[tuple[str, str | bytes], ...]
    ) -> None: ...


async def abort(context: Aborting, error: HeadraceError) -> None:
    """Ends the RPC with the error's status and details. Raises, as `context.abort` does."""
    await context.abort(error.code, error.message, trailing_metadata(error))


def trailing_metadata(error: HeadraceError) -> tuple[tuple[str, str | bytes], ...]:
    """The status with its details, and the push-back that gRPC's own retries honour."""
    metadata: list[tuple[str, str | bytes]] = [(DETAILS_KEY, to_status(error).SerializeToString())]
    if error.retry_s is not None:
        metadata.append((PUSHBACK_KEY, str(int(error.retry_s * 1000))))
    return tuple(metadata)


def to_status(error: HeadraceError) -> status_pb2.Status:
    """The error as google.rpc.Status."""
    packed = []
    for detail in error.details():
        container = any_pb2.Any()
        container.Pack(detail)
        packed.append(container)
    number = code_pb2.Code.Value(error.code.name)
    return status_pb2.Status(code=number, message=error.message, details=packed)


def _cut(text: str, most: int = MOST_CHARACTERS) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _duration(seconds: float) -> duration_pb2.Duration:
    found = duration_pb2.Duration()
    found.FromMilliseconds(int(seconds * 1000))
    return found
