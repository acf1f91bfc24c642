"""What a call can end with, as exceptions that carry what the mesh said about it.

HeadraceError            code, reason, retry_s
├── InvalidRequest       a field is wrong: `violations` names it
├── NotFound             no such model, or nothing left to resume
├── Conflict             a request with this id runs already
├── Unauthenticated      no API key, or one that is not known
├── PermissionDenied     the key does not allow it
├── Exhausted            a limit, a quota or the load forbids it now
├── Unavailable          nobody is there to answer, or the connection broke
├── DeadlineExceeded     the caller's time was up
├── Unsupported          this mesh cannot do it
├── StreamLost           an answer broke off after it began
├── Cancelled            the mesh gave the call up
└── ServerFault          all that a caller cannot help
"""

from __future__ import annotations

from typing import NamedTuple

import grpc
from google.protobuf import message as protobuf
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
_NOT_TO_WAIT = frozenset({"DEADLINE_INFEASIBLE", "WOULD_QUEUE"})
"""Reasons by which a request asked to be refused instead of being late."""


class Violation(NamedTuple):
    """A field of the request, by its path, and what is allowed there."""

    field: str
    description: str


class HeadraceError(Exception):
    """A call that failed.

    Attributes:
        code: the gRPC status.
        reason: a stable word for programs, such as "OVERLOADED"; "" when the transport failed.
        retry_s: seconds after which a retry may succeed; None where nobody promises that.
        violations: the fields that are wrong.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        retry_s: float | None = None,
        violations: tuple[Violation, ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_s = retry_s
        self.violations = violations

    @property
    def pause_s(self) -> float | None:
        """Seconds until the client asks again by itself; None where that is the caller's to decide."""
        passing = isinstance(self, (Unavailable, Exhausted)) and self.reason not in _NOT_TO_WAIT
        return self.retry_s if passing else None


class InvalidRequest(HeadraceError):
    """A field of the request is wrong."""


class NotFound(HeadraceError):
    """No such model, or nothing left to resume."""


class Conflict(HeadraceError):
    """A request with this id runs already."""


class Unauthenticated(HeadraceError):
    """No API key, or one that is not known."""


class PermissionDenied(HeadraceError):
    """The key does not allow it."""


class Exhausted(HeadraceError):
    """A limit, a quota or the load forbids it now."""


class Unavailable(HeadraceError):
    """Nobody is there to answer, or the connection broke."""


class DeadlineExceeded(HeadraceError):
    """The caller's time was up."""


class Unsupported(HeadraceError):
    """This mesh cannot do it, or not in its present state."""


class StreamLost(HeadraceError):
    """An answer broke off after it began."""


class Cancelled(HeadraceError):
    """The mesh gave the call up."""


class ServerFault(HeadraceError):
    """All that a caller cannot help."""


_KINDS: dict[grpc.StatusCode, type[HeadraceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.FAILED_PRECONDITION: Unsupported,
    grpc.StatusCode.ABORTED: StreamLost,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def from_rpc(error: grpc.aio.AioRpcError) -> HeadraceError:
    """The exception for a failed call, with what its google.rpc details say."""
    return from_status(error.code(), error.details() or "", error.trailing_metadata())


def from_status(code: grpc.StatusCode, message: str, trailing_metadata: object) -> HeadraceError:
    """The exception for a status and its trailing metadata."""
    info, retry, bad = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.BadRequest(),
    )
    has_retry = False
    for detail in _details(trailing_metadata).details:
        detail.Unpack(info)
        detail.Unpack(bad)
        has_retry = detail.Unpack(retry) or has_retry
    return _KINDS.get(code, ServerFault)(
        message or code.name,
        code=code,
        reason=info.reason,
        retry_s=retry.retry_delay.ToTimedelta().total_seconds() if has_retry else None,
        violations=tuple(Violation(each.field, each.description) for each in bad.field_violations),
    )


def _details(trailing_metadata: object) -> status_pb2.Status:
    for key, value in trailing_metadata or ():  # type: ignore[attr-defined]
        if key == DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except protobuf.DecodeError:
                break
    return status_pb2.Status()
