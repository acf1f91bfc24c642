"""The requests of a run, in order: what is asked and how urgent it is."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from headrace.request import LATENCY_CLASSES
from headrace.v1.router_pb2 import GenerateRequest

from services.cli.bench.mix import INFERRED, Mix


class Job(NamedTuple):
    """One request to send."""

    number: int
    latency_class: str
    request: GenerateRequest


def jobs(prompts: Iterable[GenerateRequest], mix: Mix, model: str | None) -> Iterator[Job]:
    """Jobs without end, numbered from 0; ids are unique among all runs."""
    run = uuid.uuid4().hex[:12]
    for number, request in enumerate(prompts):
        latency_class = mix.draw()
        if latency_class != INFERRED:
            request.latency_class = LATENCY_CLASSES[latency_class]
        if model is not None:
            request.model = model
        request.request_id = f"bench-{run}-{number}"
        yield Job(number, latency_class, request)
