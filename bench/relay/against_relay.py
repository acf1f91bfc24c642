"""The router's CPU time a token against a relay with one stream a request, and the real SMG's beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from bench.relay.clients import over_grpc
from bench.relay.mesh import Router, Site
from bench.relay.processes import LOOPBACK, Child, module
from bench.relay.tables import Runs, figures, ratios
from bench.relay.trial import Contender
from bench.results_contract import Row

PROMPT_TOKENS = 128
RELAY, RELAY_4 = "relay, 1 token a message", "relay, 4 tokens a message"
ROUTER_1, ROUTER_4 = "router, 1 token a message", "router, 4 tokens a message"
PLAIN_1, PLAIN_4 = "router, no text, 1 token", "router, no text, 4 tokens"
REAL_4 = "router, real worker, 4 tokens a message"
AIMS = {ROUTER_1: 0.62, PLAIN_4: 0.28, ROUTER_4: 0.36}


async def contenders(site: Site) -> list[Contender]:
    """Two relays over one worker; our router as it is and without text, each over a session of its own.

    Once more with a real worker, to see that sessions without an engine cost the router what real ones do.
    """
    worker = site.module(
        "stream-worker", module("stream_worker", "--ids", site.ids, "--step-s", site.step_s), site.rest
    )
    relays = [relay(site, f"{LOOPBACK}:{worker.port}", tokens) for tokens in (1, 4)]
    router = await site.start_router("router")
    textless = await site.start_router("textless", "bench.relay.textless_router")
    for each in (router, textless):
        site.start_sessions([each])
        await site.attached(each, 1)
    real = await site.start_router("router-real")
    await site.start_worker(real, site.rest)
    return [
        asked(RELAY, relays[0], 1),
        asked(RELAY_4, relays[1], 4),
        routed(ROUTER_1, router, 1),
        routed(ROUTER_4, router, 4),
        routed(PLAIN_1, textless, 1),
        routed(PLAIN_4, textless, 4),
        routed(REAL_4, real, 4),
    ]


def relay(site: Site, address: str, tokens: int) -> Child:
    """A baseline relay over the worker at `address`."""
    return site.module(f"relay-{tokens}", module("relay", address, "--tokens", tokens), site.measured)


def asked(name: str, child: Child, tokens: int) -> Contender:
    """A child of ours that serves RouterService without unary calls."""
    return Contender(
        name, (child,), partial(over_grpc, f"{LOOPBACK}:{child.port}", prompt(), tokens, unary=False)
    )


def routed(name: str, router: Router, tokens: int) -> Contender:
    """A router."""
    return Contender(name, (router.child,), partial(over_grpc, router.public, prompt(), tokens))


def prompt() -> Sequence[int]:
    """What every request asks: ids that any vocabulary has."""
    return range(100, 100 + PROMPT_TOKENS)


def rows(runs: Runs) -> Iterator[Row]:
    """Figures of all; ratios to the relay of the same run, with the aims; of SMG's, where it ran."""
    for case, costs in runs.items():
        yield from figures(case, costs)
    for case in runs:
        if case != RELAY:
            yield from ratios(runs, case, RELAY, AIMS.get(case))
