"""What clients ask, and what became of it. A load is asked of many fleets: it never changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.common.kv_chain import BLOCK_TOKENS, chain_digests, chain_root
from services.worker.scheduler.events import Usage
from services.worker.scheduler.request import Ids, LatencyClass

NUMERICS = bytes(32)  # all simulated devices compute alike
DIGEST_BYTES = 16  # that a router keeps

Digests = npt.NDArray[np.void]  # [blocks] of 16 bytes


class Part(NamedTuple):
    """A run of prompt tokens; parts of the same content are equal as far as both go."""

    content: int  # 1 .. vocabulary - 1
    tokens: int


@dataclass(frozen=True, kw_only=True)
class SimRequest:
    """One request of a load."""

    number: int
    arrival_s: float
    parts: tuple[Part, ...]
    output_tokens: int  # where the model ends its answer; nobody knows it before
    max_tokens: int = 2048
    tenant: str = "t0"
    latency_class: LatencyClass | None = LatencyClass.INTERACTIVE  # None: the router is to infer it
    streaming: bool = True
    deadline_after_s: float | None = None
    sheddable: bool = False
    ttft_target_s: float | None = None
    tpot_target_s: float | None = None
    kv_key: bytes = b""  # b"": nothing in it is shared, no block of it is kept

    @cached_property
    def prompt_tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    def prompt(self) -> Ids:
        """Its ids; made anew, because a load of long prompts would fill the memory."""
        contents = np.array([part.content for part in self.parts], np.int32)
        return np.repeat(contents, [part.tokens for part in self.parts])

    @cached_property
    def digests(self) -> Digests:
        """Of its full blocks, as a router keeps them; empty where nothing is shared."""
        if not self.kv_key:
            return np.empty(0, f"V{DIGEST_BYTES}")
        chain = chain_digests(self.kv_key, chain_root(self.kv_key, NUMERICS), self.prompt())
        return np.frombuffer(b"".join(digest[:DIGEST_BYTES] for digest in chain), f"V{DIGEST_BYTES}")

    @cached_property
    def names(self) -> list[bytes]:
        """The same as bytes: of the blocks that need not be computed if found, so never the last token's."""
        usable = (self.prompt_tokens - 1) // BLOCK_TOKENS
        return [each.tobytes() for each in self.digests[:usable]]


@dataclass(slots=True)
class Story:
    """What became of one request; times are when its router knew."""

    request: SimRequest
    router: int = 0
    worker: int = -1  # the last that it was given to
    submitted_s: float | None = None  # to that worker
    first_s: float | None = None
    end_s: float | None = None
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    moves: int = 0  # workers that it lost
    refused: str | None = None
    refused_s: float | None = None
    predicted_ttft_s: float | None = None
    served_class: int = 0
    notes: dict[str, float] = field(default_factory=dict)

    def finish(self, usage: Usage, at_s: float) -> None:
        """Its last token has come."""
        self.end_s = at_s
        self.cached_tokens, self.output_tokens = usage.cached_tokens, usage.output_tokens
        self.preemptions += usage.preemptions

    @property
    def ttft_s(self) -> float:
        """Seconds from arrival to first token; only of those that have one."""
        assert self.first_s is not None
        return self.first_s - self.request.arrival_s

    @property
    def tpot_s(self) -> float:
        """Seconds a token after the first; only of those that ended."""
        assert self.first_s is not None
        assert self.end_s is not None
        return (self.end_s - self.first_s) / max(1, self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """Seconds from arrival to end."""
        assert self.end_s is not None
        return self.end_s - self.request.arrival_s
