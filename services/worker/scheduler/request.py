"""What a caller asks of the engine: values only, no policy, no tensors, no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]

NO_IDS: Ids = np.empty(0, dtype=np.int32)


class LatencyClass(IntEnum):
    """Numbers are those of the wire contract; a smaller number is served first."""

    INTERACTIVE = 1
    STANDARD = 2
    BATCH = 3
    SYSTEM = 4  # the mesh's own probes: ordered like INTERACTIVE, charged to nobody


class FinishReason(IntEnum):
    """Why a sequence ended; numbers are those of the wire contract's EndReason.

    Every accepted request ends with exactly one of these, or is returned.
    """

    EOS = 1  # the model's own end id, which is the last output token
    STOP_TOKEN = 2  # one of stop_token_ids, which is the last output token
    LENGTH = 3  # max_tokens, or the context is full
    CANCELLED = 4  # aborted by its caller
    DEADLINE = 5  # its deadline passed before it was complete
    ERROR = 6  # this request alone failed; `Finished.message` says why
    GRAMMAR = 7  # its grammar is invalid, too large, or cannot be continued


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an output must match."""

    kind: Literal["json_schema", "regex", "lark"]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen from the logits.

    Order: penalties, min_tokens, grammar, temperature, top-k, top-p (over what top-k left), min-p, noise.
    """

    temperature: float = 0.0  # 0 is greedy: the seed and the filters below are then without effect
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0  # in (0, 1]
    min_p: float = 0.0  # in [0, 1]: relative to the most likely token
    repetition_penalty: float = (
        1.0  # > 0: divides positive logits of ids in prompt or output, multiplies others
    )
    presence_penalty: float = 0.0  # subtracted once from ids in the output
    frequency_penalty: float = 0.0  # subtracted per occurrence in the output
    seed: int = 0  # unsigned 64 bits; the whole source of randomness
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0  # stop ids cannot be chosen before this many output tokens
    logprobs: int | None = None  # None: none; n >= 0: the chosen token's, and the n best ones

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def fault(self) -> str | None:
        """The first field that no engine can honour, as a sentence; None when all is well."""
        rules = (
            ("temperature", 0.0 <= self.temperature < math.inf),
            ("top_k", self.top_k >= 0),
            ("top_p", 0.0 < self.top_p <= 1.0),
            ("min_p", 0.0 <= self.min_p <= 1.0),
            ("repetition_penalty", 0.0 < self.repetition_penalty < math.inf),
            ("presence_penalty", math.isfinite(self.presence_penalty)),
            ("frequency_penalty", math.isfinite(self.frequency_penalty)),
            ("seed", 0 <= self.seed < 2**64),
            ("min_tokens", self.min_tokens >= 0),
            ("logprobs", self.logprobs is None or self.logprobs >= 0),
        )
        return next(
            (f"{name} is out of range: {getattr(self, name)}" for name, fine in rules if not fine), None
        )


class Merge(NamedTuple):
    """Tokens of a request that go together: so many, or fewer once the first has waited `wait_s` seconds."""

    tokens: int
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One sequence to generate.

    A resumed request carries the ids that its client has in `delivered`: generation goes on at output index
    `len(delivered)`, and `max_tokens` still counts from index 0. Times are seconds of the machine's monotonic
    clock, which its processes share.
    """

    handle: int  # chosen by the caller, unique among its unfinished requests
    prompt: Ids  # [prompt tokens], at least one
    max_tokens: int
    arrival_s: float
    sampling: Sampling = field(default_factory=Sampling)
    grammar: Grammar | None = None
    delivered: Ids = field(default_factory=lambda: NO_IDS)  # [output tokens already delivered]
    latency_class: LatencyClass = LatencyClass.STANDARD
    deadline_s: float | None = None  # when the answer must be complete; None: never
    ttft_target_s: float | None = None  # None: the class's
    tpot_target_s: float | None = None  # None: the class's
    kv_key: bytes = b""  # derived by the router per scope and model; b"": no block is reused or kept
    public_kv_key: bytes = b""  # of a public prefix, for the first public_prefix_tokens tokens
    public_prefix_tokens: int = 0  # a multiple of the block size
    expected_output_tokens: int | None = None  # a prediction, for admission only; None: the class's average
    tenant: bytes = b""  # an opaque tag that served tokens are counted under
    session: int = 0  # which router session submitted it, for credits
    merge: Merge | None = None  # None: each token is told with the step that made it; not with logprobs
