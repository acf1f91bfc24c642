"""What the command line says of errors that a person can act on."""

from __future__ import annotations

import grpc
import pytest
from headrace.errors import DeadlineExceeded, HeadraceError, InvalidRequest, NotFound, Unavailable, Violation

from services.cli.errors import one_line

ALL = "failed to connect to all addresses; last error: "


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            ALL + "UNKNOWN: 10.0.0.1:1: Connection refused",
            "nobody answers there: 10.0.0.1:1: Connection refused "
            "(`headrace up` starts a mesh on this machine)",
        ),
        (
            ALL + "UNAVAILABLE: 10.0.0.1:1: Socket closed",
            "nobody answers there: 10.0.0.1:1: Socket closed "
            "(a mesh with TLS needs --tls or --tls-authority)",
        ),
        (
            ALL + "UNKNOWN: x: Tls handshake failed: WRONG_VERSION_NUMBER",
            "no TLS there: x: Tls handshake failed: WRONG_VERSION_NUMBER; without --tls it is plain text",
        ),
        (
            ALL + "UNKNOWN: x: Tls handshake failed: CERTIFICATE_VERIFY_FAILED",
            "no TLS with whom is there: x: Tls handshake failed: CERTIFICATE_VERIFY_FAILED; "
            "--tls-authority names whose certificates to trust",
        ),
    ],
    ids=["nobody", "TLS is wanted", "no TLS", "a stranger's certificate"],
)
def test_a_connection_that_was_not_to_be_had_says_what_may_help(text: str, told: str) -> None:
    assert one_line(Unavailable(text, code=grpc.StatusCode.UNAVAILABLE)) == told


def test_a_connection_that_broke_is_not_said_to_have_been_nobody() -> None:
    error = Unavailable("Stream removed (Socket closed)", code=grpc.StatusCode.UNAVAILABLE)
    assert one_line(error) == (
        "the connection broke, and nobody could take the call up: Stream removed (Socket closed)"
    )


@pytest.mark.parametrize(
    ("code", "reason", "told"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "SHED", "RESOURCE_EXHAUSTED (SHED): no"),
        (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "NOT_FOUND: no"),
        (grpc.StatusCode.INTERNAL, "", "INTERNAL: no"),
    ],
)
def test_the_reason_that_programs_go_by_is_told_where_it_says_more_than_the_status(
    code: grpc.StatusCode, reason: str, told: str
) -> None:
    assert one_line(HeadraceError("no", code=code, reason=reason)) == told


def test_a_model_that_is_not_served_says_where_those_are_that_are() -> None:
    error = NotFound("the model 'x' is not served", code=grpc.StatusCode.NOT_FOUND)
    assert one_line(error) == (
        "NOT_FOUND: the model 'x' is not served; `headrace models` lists those that are"
    )


def test_a_model_without_turns_is_told_with_what_it_can() -> None:
    wrong = (Violation("chat", "the model 'x' has no chat template"),)
    text = "chat: the model 'x' has no chat template"
    error = InvalidRequest(text, code=grpc.StatusCode.INVALID_ARGUMENT, violations=wrong)
    assert one_line(error) == (
        f"INVALID_ARGUMENT: {text}; `headrace generate --no-chat` continues a text as it is"
    )


def test_a_call_that_was_too_long_says_whose_bound_that_was() -> None:
    error = DeadlineExceeded("Deadline Exceeded", code=grpc.StatusCode.DEADLINE_EXCEEDED)
    told = "no whole answer within the time of --timeout"
    assert one_line(error) == f"DEADLINE_EXCEEDED: {told}"
    error = DeadlineExceeded("Stream removed (Deadline Exceeded)", code=grpc.StatusCode.DEADLINE_EXCEEDED)
    assert one_line(error) == f"DEADLINE_EXCEEDED: {told}"
    error = DeadlineExceeded(
        "Deadline Exceeded; refused until then: all is taken",
        code=grpc.StatusCode.DEADLINE_EXCEEDED,
        reason="OVERLOADED",
    )
    assert one_line(error) == f"DEADLINE_EXCEEDED (OVERLOADED): {told}; refused until then: all is taken"
    error = DeadlineExceeded("the deadline passed while it waited", code=grpc.StatusCode.DEADLINE_EXCEEDED)
    assert one_line(error) == "DEADLINE_EXCEEDED: the deadline passed while it waited"


def test_a_file_is_named_once() -> None:
    missing = FileNotFoundError(2, "No such file or directory", "/nope/x")
    assert one_line(missing) == "/nope/x: No such file or directory"
