"""What an engine is to the loop that drives it: declare what you hold, launch steps, give ids back.

A runner never sees a request, the scheduler never sees a tensor. A new engine is one `Runner` and one entry
in `load.py`; nothing else may need to change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from services.worker.scheduler.budget import PRIOR, StepModelState
from services.worker.scheduler.step import Capabilities, KVSpec, Sampled, SlotInit, Step

if TYPE_CHECKING:
    from services.worker.engine.grammar import Vocabulary

__all__ = [
    "Capabilities",
    "CountsCopies",
    "EngineDescription",
    "KVSpec",
    "LoadedEngine",
    "Pending",
    "Runner",
    "Sampled",
    "SlotInit",
    "Step",
]


class Pending(Protocol):
    """A step under way."""

    def result(self) -> Sampled:
        """Wait for the step and return what it chose. Called once, in launch order."""


class Runner(Protocol):
    """A model on a device.

    Steps arrive in order. Memory of the blocks in `spec` belongs to the runner, which block holds what is the
    scheduler's business. A runner that raises is dead: the loop reports it and ends.
    """

    @property
    def spec(self) -> KVSpec: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def launch(self, step: Step) -> Pending:
        """Start a step. May compute it before it returns (CPU) or only enqueue it (GPU)."""

    def improve(self) -> bool:
        """Use an idle moment for what makes later steps faster, at most some tenths of a second; whether
        there is more to do. No step is pending."""

    def close(self) -> None:
        """Give memory back. Idempotent; no step is pending."""


@runtime_checkable
class CountsCopies(Protocol):
    """A `Runner` with a device of its own, which says what it has copied there."""

    @property
    def host_to_device_bytes(self) -> int:
        """Since it was made, weights left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """What a worker says of its engine; plain values that cross processes."""

    model: str
    engine: str  # "torch", ...
    engine_version: str
    device: str  # for people: "cpu (AMD EPYC, 2 threads)", "NVIDIA H200"
    device_uuid: str | None = None  # of a GPU or MIG instance, as CUDA says it
    dtype: str
    vocab_size: int
    eos_ids: tuple[int, ...]
    context_length: int  # tokens of one sequence that this engine serves
    parameters: int
    weights_bytes: int  # as held in memory
    weights_digest: bytes  # 32 bytes, SHA-256 over the weight files
    numerics_id: bytes  # 32 bytes: equal where results are bit-equal (DESIGN §2)
    spec: KVSpec
    capabilities: Capabilities
    load_seconds: float


class LoadedEngine(NamedTuple):
    """A runner that is ready, and what to say of it."""

    runner: Runner
    description: EngineDescription
    vocabulary: Vocabulary | None = None  # for grammars, with the capability
    prior: StepModelState = PRIOR  # what its steps cost, as far as known before the first request
