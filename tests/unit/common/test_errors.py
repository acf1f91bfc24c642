from __future__ import annotations

import grpc
import pytest
from google.protobuf import message
from google.rpc import error_details_pb2

from services.common import errors


def details_of(error: errors.HeadraceError, kind: type[message.Message]) -> list[message.Message]:
    found = []
    for packed in errors.to_status(error).details:
        unpacked = kind()
        if packed.Unpack(unpacked):
            found.append(unpacked)
    return found


def every_error() -> list[errors.HeadraceError]:
    return [
        errors.InvalidArgument(errors.FieldViolation("text", "empty")),
        errors.NotFound("no such model", kind="model", name="x"),
        *(
            kind("a message")
            for kind in (
                errors.AlreadyExists,
                errors.Unauthenticated,
                errors.PermissionDenied,
                errors.FailedPrecondition,
                errors.Unimplemented,
                errors.Overloaded,
                errors.QuotaExceeded,
                errors.DeadlineInfeasible,
                errors.SlowConsumer,
                errors.DeadlineExceeded,
                errors.Unavailable,
                errors.Aborted,
                errors.Cancelled,
                errors.Internal,
            )
        ),
    ]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_every_error_has_a_code_and_a_reason_for_programs(error: errors.HeadraceError) -> None:
    status = errors.to_status(error)
    assert status.code == error.code.value[0]
    assert error.code is not grpc.StatusCode.OK
    (info,) = details_of(error, error_details_pb2.ErrorInfo)
    assert info.domain == "headrace"
    assert info.reason == error.reason


def test_violations_name_their_fields() -> None:
    error = errors.InvalidArgument(
        errors.FieldViolation("sampling.temperature", "must be in [0, 100]"),
        errors.FieldViolation("max_tokens", "must be at least 1"),
    )
    (request,) = details_of(error, error_details_pb2.BadRequest)
    assert [each.field for each in request.field_violations] == ["sampling.temperature", "max_tokens"]


def test_a_retry_time_is_told_to_people_and_to_grpc() -> None:
    error = errors.Overloaded("too much", retry_s=1.5)
    (retry,) = details_of(error, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert (errors.PUSHBACK_KEY, "1500") in errors.trailing_metadata(error)


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgument(*[errors.FieldViolation(f"f[{n}]", "wrong") for n in range(20_000)]),
        errors.InvalidArgument(errors.FieldViolation("f" * 10_000, "日" * 10_000)),
        errors.NotFound("n" * 10_000, kind="model", name="日" * 10_000),
        errors.Internal("日" * 10_000),
    ],
    ids=["many violations", "long violation", "long name", "long message"],
)
def test_every_status_fits_into_the_trailers(error: errors.HeadraceError) -> None:
    details = dict(errors.trailing_metadata(error))[errors.DETAILS_KEY]
    assert len(details) * 4 / 3 + 3 * len(error.message.encode()) < 8 << 10
