"""The ghz configurations ask for methods and fields that exist, with bounds that suit long streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from headrace.v1 import router_pb2

from tests.support.compose import ROOT

FILES = sorted((ROOT / "deploy" / "ghz").glob("*.json"))
KEYS = {
    *("name", "host", "insecure", "call", "total", "concurrency", "connections", "timeout"),
    *("duration-stop", "data"),
}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def configuration(request: pytest.FixtureRequest) -> dict[str, Any]:
    path: Path = request.param
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_both_ways_to_ask_have_a_configuration() -> None:
    calls = {json.loads(path.read_text())["call"].rpartition(".")[2] for path in FILES}
    assert calls == {"Generate", "GenerateUnary"}


def test_request_is_one_of_the_method(configuration: dict[str, Any]) -> None:
    service, _, method = configuration["call"].rpartition(".")
    router = router_pb2.DESCRIPTOR.services_by_name["RouterService"]
    assert router.full_name == service
    assert router.methods_by_name[method].input_type.name == "GenerateRequest"
    request = json_format.ParseDict(configuration["data"], router_pb2.GenerateRequest())
    assert request.WhichOneof("prompt")
    assert request.max_tokens >= 1


def test_every_request_is_another_one(configuration: dict[str, Any]) -> None:
    assert "{{.RequestNumber}}" in json.dumps(configuration["data"]), "the response cache would answer"


def test_nothing_of_ghz_is_left_to_defaults_that_mislead(configuration: dict[str, Any]) -> None:
    assert set(configuration) == KEYS
    assert configuration["connections"] > 1, "one connection is one router process"
    assert configuration["timeout"] != "20s", "the default cuts long streams"
