"""One request being served: the ids known so far, how many of them are computed, and where they are.

ids:  prompt, output … known ids, then `pending` ids that a launched step chose and the host has not seen
      ├── settled ──┤              computed by completed steps: what may be sealed
      ├────── computed ──────┤     computed once all launched steps complete

`masked`: what the grammar lets the next token be is known; always so without a grammar.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from itertools import islice

from services.common.kv_chain import chain_root, extend_chain
from services.worker.scheduler.blocks import Link
from services.worker.scheduler.policy import Place
from services.worker.scheduler.request import FinishReason, Merge, Request

NEVER = sys.maxsize


class Sequence:
    """Mutable state of one request; the scheduler's parts share it."""

    __slots__ = (
        "announced",
        "background",
        "backlog",
        "blocks",
        "cached_tokens",
        "capacity",
        "chain",
        "computed",
        "constrained",
        "entered_step",
        "finished",
        "first_step_s",
        "first_token_s",
        "full_at",
        "handle",
        "ids",
        "last_launch_s",
        "last_step",
        "lengthy",
        "logprobs",
        "masked",
        "max_outputs",
        "merge",
        "outputs",
        "pending",
        "place",
        "preemptions",
        "promised",
        "prompt_len",
        "recomputed",
        "request",
        "sealed",
        "settled",
        "slot",
        "stop_ids",
        "tenant",
        "tpot_s",
        "was_computed",
    )

    def __init__(
        self,
        request: Request,
        chain: Chain,
        *,
        max_outputs: int,
        stop_ids: frozenset[int],
        tpot_s: float | None,
    ) -> None:
        self.request = request
        self.handle = request.handle
        self.tenant = request.tenant
        self.logprobs = request.sampling.logprobs or 0  # of the best ids
        self.constrained = request.grammar is not None  # each token waits for the host to see the one before
        self.place = Place(0, 0.0, request.handle)  # the intake gives the real one
        self.background = False  # takes what is left over; a BATCH request that has aged does so no longer
        self.lengthy = False  # its prompt alone takes far longer than its first token may; the intake says
        self.chain = chain
        self.tpot_s = tpot_s
        self.stop_ids = stop_ids
        self.max_outputs = max_outputs  # clipped to the context
        self.ids = array("i", request.prompt.tobytes())
        self.ids.frombytes(request.delivered.tobytes())
        self.prompt_len = len(request.prompt)
        self.outputs = len(request.delivered)
        self.pending = 0
        self.computed = 0
        self.settled = 0
        self.blocks: list[int] = []
        self.capacity = 0  # tokens that `blocks` can hold
        self.announced = 0  # blocks that the runner knows of
        self.promised = 0  # blocks that it will probably need beyond those
        self.sealed = 0  # leading blocks that are findable, or need not be
        self.full_at = 0  # settled tokens at which the block after those is full
        self.slot: int | None = None  # None while waiting
        self.entered_step = NEVER  # first step of its stay in the slot: earlier ones settle nothing
        self.last_step = 0  # the last launched step that it is in
        self.last_launch_s = request.arrival_s  # when it last made progress
        self.backlog = 0  # tokens to compute when it is next admitted, as estimated when it began to wait
        self.was_computed = 0  # tokens computed when it was last preempted
        self.preemptions = 0
        self.recomputed = 0
        self.cached_tokens: int | None = None  # None before the first admission
        self.first_step_s: float | None = None
        self.first_token_s: float | None = None
        self.finished = False
        self.merge: Merge | None = None  # that of the request once it has its first token here
        self.masked = not self.constrained  # whoever knows the grammar says when it is

    @property
    def computable(self) -> int:
        """Tokens to compute that need no unknown mask: the last one is where the next token is chosen."""
        return self.missing if self.masked else self.missing - 1

    def stand(self, place: Place) -> None:
        """Takes its place in line."""
        self.place = place
        self.background = place.tier > 1

    @property
    def length(self) -> int:
        """Tokens that exist, those included which the host has not seen."""
        return len(self.ids) + self.pending

    @property
    def missing(self) -> int:
        """Tokens to compute before the next can be chosen."""
        return len(self.ids) + self.pending - self.computed

    def stop_reason(self, token: int) -> FinishReason:
        """Why it ends with this token, which is one of `stop_ids`."""
        named = token in self.request.sampling.stop_token_ids
        return FinishReason.STOP_TOKEN if named else FinishReason.EOS

    def reusable_links(self) -> Iterator[Link]:
        """Links of the full blocks that need not be computed if found: the last token always is."""
        return islice(self.chain.links(self.ids), (len(self.ids) - 1) // self.chain.block_tokens)

    def move_to(self, slot: int, blocks: list[int], found_tokens: int) -> None:
        """Enter a slot with blocks that hold the first `found_tokens` tokens already."""
        self.slot = slot
        self.blocks = blocks
        self.capacity = found_tokens
        self.announced = 0
        self.computed = self.settled = found_tokens
        self.sealed = len(blocks)
        self.full_at = found_tokens + self.chain.block_tokens
        self.recomputed += max(0, self.was_computed - found_tokens)
        if self.cached_tokens is None:
            self.cached_tokens = min(found_tokens, self.prompt_len)

    def move_out(self) -> list[int]:
        """Leave the slot; returns the blocks, which are the caller's to release."""
        blocks, self.blocks = self.blocks, []
        self.slot = None
        self.entered_step = NEVER
        self.was_computed = self.computed
        self.capacity = self.computed = self.settled = self.sealed = self.announced = 0
        return blocks


class Chain:
    """Names of the blocks of one sequence, computed once each; see services.common.kv_chain."""

    def __init__(self, request: Request, numerics_id: bytes, block_tokens: int, *, reuse: bool) -> None:
        self.block_tokens = block_tokens
        self._key = request.kv_key if reuse else b""
        self._public_key = request.public_kv_key if reuse else b""
        self._public_blocks = request.public_prefix_tokens // block_tokens if self._public_key else 0
        root_key = self._public_key if self._public_blocks else self._key
        self._root = chain_root(root_key, numerics_id, block_tokens) if root_key else b""
        self._links: list[Link] = []

    def links(self, ids: array[int]) -> Iterator[Link]:
        """Links of the full blocks of `ids`, first to last, as far as there is a key for them."""
        for index in range(len(ids) // self.block_tokens):
            if not self._key_of(index):
                return
            yield self.link(index, ids)

    def link(self, index: int, ids: array[int]) -> Link:
        """The link of one full block; those before it were asked for already."""
        if index == len(self._links):
            packed = ids[index * self.block_tokens : (index + 1) * self.block_tokens].tobytes()
            parent = self._links[-1].digest if index else self._root
            self._links.append(Link(extend_chain(self._key_of(index), parent, packed), parent, packed))
        return self._links[index]

    def covers(self, index: int) -> bool:
        """Whether there is a key for this block."""
        return bool(self._key_of(index))

    def _key_of(self, index: int) -> bytes:
        return self._public_key if index < self._public_blocks else self._key
