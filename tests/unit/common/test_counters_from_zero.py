"""Counters with few and known labels are there before their first event, where a rate can see it."""

from __future__ import annotations

from typing import get_args

from headrace.v1 import tokenizer_pb2
from prometheus_client import CollectorRegistry

from services.common import transport
from services.common.members import MeshSecret
from services.common.metrics import RpcMetrics
from services.common.rpc import Registrar
from services.router.metrics import BadFrame as OfWorkers
from services.router.metrics import RouterMetrics, TakenUp
from services.worker.metrics import BadFrame as OfRouters
from services.worker.metrics import WorkerMetrics


def test_a_router_shows_what_has_not_happened_yet() -> None:
    registry = CollectorRegistry()
    RouterMetrics(registry)
    shown = {
        ("bad_frames", "kind"): get_args(OfWorkers),
        ("streams_taken_up", "how"): get_args(TakenUp),
        ("requests_displaced", "how"): ("paused", "returned"),
        ("quota_claims", "outcome"): ("answered", "unanswered"),
    }
    for (name, label), values in shown.items():
        for value in values:
            assert registry.get_sample_value(f"headrace_{name}_total", {label: value}) == 0, (name, value)


def test_a_worker_shows_bad_frames_that_have_not_come_yet() -> None:
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    for kind in get_args(OfRouters):
        assert registry.get_sample_value("headrace_worker_bad_frames_total", {"kind": kind}) == 0


async def test_calls_of_strangers_are_shown_for_what_members_alone_may_call() -> None:
    for members_only, shown in (("tokenizer", 0), (None, None)):
        registry = CollectorRegistry()
        registrar = Registrar(transport.server(), RpcMetrics(registry), MeshSecret(b"m" * 32))
        service = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"]
        servicer = type("Servicer", (), {method.name: staticmethod(_none) for method in service.methods})()
        registrar.add(service, servicer, members_only=members_only)
        method = {"method": f"TokenizerService.{service.methods[0].name}"}
        assert registry.get_sample_value("headrace_strangers_total", method) == shown


async def _none(request: object, context: object) -> None:
    """A method of which only the name counts."""
