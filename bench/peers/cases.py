"""What is compared with what, and what we aim at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from bench.peers.peers import (
    CTRANSLATE2,
    ENGINE,
    LLAMA_CPP,
    MESH,
    OPENVINO,
    TORCH,
    TRANSFORMERS_CB,
    VLLM,
    Peer,
)

PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
PROMPTS = {1: 8, 16: 32}  # by streams
Model = Literal["60m", "smollm2"]
Metric = Literal["tokens_per_s", "tokens_per_cpu_s"]
Item = TypeVar("Item")


class Aim(NamedTuple):
    """Our figure over a peer's, each repeat: the median shall be at least `factor`."""

    ours: Peer
    peer: Peer
    factor: float
    metric: Metric = "tokens_per_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A peer in a case."""

    peer: Peer
    threads: int
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Entries that do the same work, interleaved."""

    key: str
    title: str
    model: Model
    streams: int
    entries: tuple[Entry, ...]
    aims: tuple[Aim, ...]

    @property
    def prompts(self) -> int:
        return PROMPTS[self.streams]

    @property
    def real(self) -> bool:
        """Whether the weights are of a trained model."""
        return self.model == "smollm2"

    @property
    def reference(self) -> str:
        """The peer whose ids others are compared with; with random weights that is only told."""
        return (TORCH if self.real else ENGINE).name


def _entries(threads: int, dtype: str, *peers: Peer) -> tuple[Entry, ...]:
    return tuple(Entry(peer=peer, threads=threads, dtype=dtype) for peer in peers)


_SMOLLM2 = _entries(1, "bfloat16", ENGINE, TORCH, LLAMA_CPP)
CASES = (
    Case(
        key="bf16-16",
        title="60M bf16, 16 streams, 2 threads",
        model="60m",
        streams=16,
        entries=_entries(2, "bfloat16", ENGINE, MESH, OPENVINO, VLLM)
        + _entries(1, "bfloat16", TRANSFORMERS_CB),
        aims=(Aim(MESH, VLLM, 1.0), Aim(ENGINE, OPENVINO, 1.0), Aim(ENGINE, TRANSFORMERS_CB, 3.0)),
    ),
    Case(
        key="bf16-1",
        title="60M bf16, 1 stream, 2 threads",
        model="60m",
        streams=1,
        entries=_entries(2, "bfloat16", ENGINE, MESH, OPENVINO, VLLM),
        aims=(Aim(MESH, VLLM, 1.0), Aim(ENGINE, VLLM, 1.0), Aim(ENGINE, OPENVINO, 0.9)),
    ),
    Case(
        key="int8-16",
        title="60M int8, 16 streams, 1 thread",
        model="60m",
        streams=16,
        entries=_entries(1, "int8", ENGINE, CTRANSLATE2),
        aims=(Aim(ENGINE, CTRANSLATE2, 1.0),),
    ),
    Case(
        key="smollm2-1",
        title="SmolLM2-135M, 1 stream, 1 thread",
        model="smollm2",
        streams=1,
        entries=_SMOLLM2,
        aims=(Aim(ENGINE, TORCH, 2.0, "tokens_per_cpu_s"),),
    ),
    Case(
        key="smollm2-16",
        title="SmolLM2-135M, 16 streams, 1 thread",
        model="smollm2",
        streams=16,
        entries=_SMOLLM2,
        aims=(Aim(ENGINE, TORCH, 1.5, "tokens_per_cpu_s"),),
    ),
)


def chosen(keys: Sequence[str]) -> tuple[Case, ...]:
    """The cases of these keys, all without any. Raises ValueError."""
    known = {case.key: case for case in CASES}
    if unknown := [key for key in keys if key not in known]:
        raise ValueError(f"no case {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(known[key] for key in keys) if keys else CASES


def rotated(items: Sequence[Item], turn: int) -> list[Item]:
    """Each repeat begins with another, so that no one always follows the same neighbour's heat."""
    start = turn % max(1, len(items))
    return [*items[start:], *items[:start]]
