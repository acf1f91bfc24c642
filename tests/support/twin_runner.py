"""Two runners that are given the same steps and must choose the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from services.worker.engine.base import Pending, Runner
from services.worker.scheduler.step import Sampled, Step

Change = Callable[[Step], Step]


class TwinPending:
    """A step under way in both."""

    def __init__(self, first: Pending, second: Pending, twin: TwinRunner) -> None:
        self._first = first
        self._second = second
        self._twin = twin

    def result(self) -> Sampled:
        one, other = self._first.result(), self._second.result()
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert (one.logprobs is None) == (other.logprobs is None)
        if one.logprobs is not None and other.logprobs is not None:
            np.testing.assert_array_equal(one.logprobs.rows, other.logprobs.rows)
            np.testing.assert_allclose(one.logprobs.chosen, other.logprobs.chosen, atol=1e-4)
            best = other.logprobs.top.shape[1]
            np.testing.assert_allclose(one.logprobs.top[:, :best], other.logprobs.top, atol=1e-4)
            gaps = np.abs(np.diff(other.logprobs.top, prepend=np.inf, append=np.inf))
            tied = np.minimum(gaps[:, :-1], gaps[:, 1:]) < 1e-4
            assert ((one.logprobs.top_ids[:, :best] == other.logprobs.top_ids) | tied).all()
        self._twin.sampled.append(one)
        return one


@dataclass
class TwinRunner:
    """`change` is made to each step before both see it."""

    first: Runner
    second: Runner
    change: Change = lambda step: step
    sampled: list[Sampled] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec = self.first.spec
        self.capabilities = self.first.capabilities

    def launch(self, step: Step) -> TwinPending:
        step = self.change(step)
        return TwinPending(self.first.launch(step), self.second.launch(step), self)

    def improve(self) -> bool:
        return self.first.improve()

    def close(self) -> None:
        self.first.close()
        self.second.close()
