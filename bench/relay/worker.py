"""The worker's CPU time a token against one with a stream a request, on the same simulated engine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from bench.relay.against_relay import prompt
from bench.relay.clients import over_grpc
from bench.relay.mesh import Site
from bench.relay.processes import LOOPBACK, module
from bench.relay.tables import Runs, figures, ratios
from bench.relay.trial import Contender
from bench.results_contract import Row

STREAMS = "worker, one stream a request"
SESSION = "worker, one frame a step"
AIM = 0.2


async def contenders(site: Site) -> list[Contender]:
    """Both on the measured core, their engines on the other."""
    command = module("engine_worker", "--model", site.model.path, "--calibration", site.calibration())
    streams = site.module("engine-worker", command, site.measured)
    router = await site.start_router("router", core=site.rest)
    session = await site.start_worker(router, site.measured)
    for each in (streams, session):
        each.move_children(site.rest)
    address = f"{LOOPBACK}:{streams.port}"
    return [
        Contender(STREAMS, (streams,), partial(over_grpc, address, prompt(), 1, unary=False)),
        Contender(SESSION, (session,), partial(over_grpc, router.public, prompt(), 4, unary=False)),
    ]


def rows(runs: Runs) -> Iterator[Row]:
    """Figures of both, and the ratio."""
    for case, costs in runs.items():
        yield from figures(case, costs)
    yield from ratios(runs, SESSION, STREAMS, AIM)
