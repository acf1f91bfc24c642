"""What an adapter says of one job, and whether it can be true."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

Ids = list[int]
ALIKE = 1 / 16  # part of a prompt's ids that another engine begins with alike, where weights are real
SAME = (
    1 / 64
)  # the same of a peer's own repeats: bf16 rounds by batch and chunk, random weights have near-ties


class OutcomeError(ValueError):
    """A reply that is no outcome."""


class Outcome(NamedTuple):
    """One job of one peer."""

    wall_s: float
    cpu_s: float
    outputs: list[Ids]
    ttft_s: list[float]  # of the requests whose first token was seen
    tpot_s: list[float]

    @classmethod
    def parse(cls, line: str) -> Self:
        """From an adapter's line. Raises OutcomeError."""
        reply = parse_reply(line)
        try:
            outputs = [[int(each) for each in output] for output in reply["outputs"]]
            times = [[float(each) for each in reply[name]] for name in ("ttft_s", "tpot_s")]
            return cls(float(reply["wall_s"]), float(reply["cpu_s"]), outputs, *times)
        except (KeyError, TypeError, ValueError) as error:
            raise OutcomeError(f"no outcome of a job: {type(error).__name__}: {error}") from None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.outputs))

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall_s

    @property
    def tokens_per_cpu_s(self) -> float:
        """Per second of user and system time of the peer's whole process tree."""
        return self.tokens / self.cpu_s

    @property
    def ttft_ms(self) -> float | None:
        """Median."""
        return 1e3 * statistics.median(self.ttft_s) if self.ttft_s else None

    @property
    def tpot_ms(self) -> float | None:
        """Median."""
        return 1e3 * statistics.median(self.tpot_s) if self.tpot_s else None


def parse_reply(line: str) -> dict[str, Any]:
    """One JSON object. Raises OutcomeError."""
    try:
        reply = json.loads(line)
    except ValueError:
        raise OutcomeError(f"no JSON: {line[:120]!r}") from None
    if not isinstance(reply, dict):
        raise OutcomeError(f"no JSON object: {line[:120]!r}")
    return reply


def faults(outcome: Outcome, prompts: int, tokens: int, vocab: int) -> Iterator[str]:
    """What cannot be true of an answer to each of so many prompts, of so many tokens each."""
    outputs = outcome.outputs
    if not (outcome.wall_s > 0 and outcome.cpu_s > 0):
        yield f"it took {outcome.wall_s} s and {outcome.cpu_s} s of CPU"
    if len(outputs) != prompts:
        yield f"{len(outputs)} answers to {prompts} prompts"
    if odd := sorted({len(output) for output in outputs} - {tokens}):
        yield f"answers of {', '.join(map(str, odd))} tokens, not {tokens}"
    if outside := {each for output in outputs for each in output if not 0 <= each < vocab}:
        yield f"id {min(outside)} is outside the vocabulary of {vocab}"
    if 2 * sum(len(set(output)) == 1 for output in outputs) > len(outputs):
        yield "most answers are one token over and over"
    if len(outputs) > 1 and len(set(map(tuple, outputs))) == 1:
        yield "all prompts have the same answer"


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Ids that two outputs begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def agreement(one: Outcome, other: Outcome) -> float:
    """Part of the ids that both begin with alike, in the median of the prompts; 1: the same."""
    pairs = list(zip(one.outputs, other.outputs, strict=True))
    return statistics.median(common(a, b) / max(1, len(a)) for a, b in pairs)


def disagrees(outcome: Outcome, earlier: Outcome) -> str | None:
    """Whether a greedy run differs from an earlier one of the same peer more than rounding explains."""
    same = agreement(outcome, earlier)
    return None if same >= SAME else f"a repeat begins alike in {same:.0%} of its ids, not in {SAME:.0%}"
