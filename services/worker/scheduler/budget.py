"""How long a step will take, learned from the steps that were taken.

    seconds = a + b * tokens + c * prefill attention + d * context + e * sequences

Least squares on the relative error, recursive with forgetting 0.999, coefficients not negative; a running
95th percentile of actual / predicted makes the prediction an upper one (research/algorithms.md, policy A2).
Neighbours on a shared machine change its pace within seconds, all steps alike: a running mean of actual /
expected follows that. On two shared cores it brought the mean error of 6,347 steps from 12.6 to 9.0 %.
What no neighbour does, a device that throttles or is shared anew, is taken for lasting: all that was learned
is seen at that pace then. Squares of relative errors alone would forget what a step twenty times as long
contradicts only after thousands of these, each of which counts a four-hundredth.

Errors are relative, so a step that seems to take no time would count more than all others: after a pause of
the process, that of a frozen container say, a device has long finished what was launched before it. No step
counts as shorter than a quarter of what was expected; a model that expects too much still gets there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.worker.scheduler.step import StepCost

_FORGETTING = 0.999
_QUANTILE = 0.95
_QUANTILE_STEP = 0.01
_QUANTILE_RANGE = (1.0, 1.5)
SHORTEST = 0.25  # of what is expected: as shorter no step is learned from
_PACE_STEP = 0.1  # of one step in the running pace
_PACE_RANGE = (0.3, 3.0)  # of one step: an outlier moves the pace by no more
_LASTING = 2.5  # a running pace that is as high is the device's own
_SCALE = np.array([1.0, 1e2, 1e5, 1e4, 1e1])  # typical features: keeps the least squares well conditioned
_SCALES: tuple[float, ...] = tuple(_SCALE.tolist())
_RIDGE = 1e-6  # holds a coefficient that recent steps say nothing about where it was
ERROR_WEIGHT = 0.01  # of one step in the running mean of errors, once a hundred were seen
_PRIOR_WEIGHT = 1e-3  # of the prior, in steps
_SOLVE_ALWAYS, _SOLVE_EVERY = 100, 8  # steps: each of the first ones, later every eighth


Vector = npt.NDArray[np.float64]


class StepModelState(NamedTuple):
    """Seconds of a step = dot(coefficients, StepCost) * quantile; routers predict with the same numbers."""

    coefficients: tuple[float, float, float, float, float]
    quantile: float  # running 95th percentile of actual / predicted, 1.0 .. 1.5
    error: float  # running mean of |actual - predicted| / actual
    observed_steps: int


PRIOR = StepModelState((2e-3, 1e-4, 1e-9, 1e-8, 1e-5), 1.0, 0.0, 0)  # cautious: 10k tokens a second


class StepModel:
    """The step-time model of one runner; starts from what is known of it, or from a cautious guess."""

    def __init__(self, prior: StepModelState = PRIOR) -> None:
        self._weights = np.array(prior.coefficients) * _SCALE
        moments = np.eye(5) * _PRIOR_WEIGHT
        self._moments: list[float] = moments.ravel().tolist()  # of features with features, fading
        self._targets: list[float] = (moments @ self._weights).tolist()  # of features with 1
        self._coefficients = prior.coefficients
        self._pace = 1.0  # of the machine now, times what the coefficients expect
        self._quantile = prior.quantile
        self._error = prior.error
        self._observed = prior.observed_steps

    def predict(self, cost: StepCost) -> float:
        """Seconds that a step of this cost takes at the upper quantile."""
        a, b, c, d, e = self._coefficients
        mean = a + b * cost.tokens + c * cost.attention + d * cost.context + e * cost.sequences
        return self._quantile * self._pace * mean

    def tokens_within(self, seconds: float, done: int) -> int:
        """Most tokens of a prompt with `done` tokens computed that a step has room for in the given seconds.

        Solves b x + c x (done + x / 2) = seconds / (quantile * pace) for x.
        """
        _, b, c, _, _ = self._coefficients
        allowed = seconds / (self._quantile * self._pace)
        if allowed <= 0.0:
            return 0
        linear = max(b + c * done, 1e-12)
        root = math.sqrt(linear * linear + 2.0 * c * allowed)
        return int(min(2.0 * allowed / (linear + root), 1e9))

    def observe(self, cost: StepCost, seconds: float) -> None:
        """Learn from one finished step."""
        predicted = self.predict(cost) / self._quantile
        seconds = max(seconds, SHORTEST * predicted, 1e-6)
        self._track(predicted, seconds)
        if self._pace >= _LASTING:
            self._take_for_lasting()
        # Plain numbers: arrays of so few take ten times as long. Relative: the target is 1.
        features = [value / (scale * seconds) for value, scale in zip(cost, _SCALES, strict=True)]
        products = [one * other for one in features for other in features]
        self._moments = [_FORGETTING * old + new for old, new in zip(self._moments, products, strict=True)]
        self._targets = [_FORGETTING * old + new for old, new in zip(self._targets, features, strict=True)]
        if self._observed <= _SOLVE_ALWAYS or self._observed % _SOLVE_EVERY == 0:
            self._weights = self._solve()
            a, b, c, d, e = (self._weights / _SCALE).tolist()
            self._coefficients = (a, b, c, d, e)

    def _take_for_lasting(self) -> None:
        """As if all steps had been so slow: the shape of what was learned stays."""
        pace, self._pace = self._pace, 1.0
        self._weights = pace * self._weights
        self._moments = [each / pace**2 for each in self._moments]
        self._targets = [each / pace for each in self._targets]
        a, b, c, d, e = (pace * each for each in self._coefficients)
        self._coefficients = (a, b, c, d, e)

    def _solve(self) -> Vector:
        """Least squares without negative weights: the most negative is left out, until none is."""
        moments = np.array(self._moments).reshape(5, 5)
        ridge = _RIDGE * moments.trace()
        moments += ridge * np.eye(5)
        targets = np.array(self._targets) + ridge * self._weights
        kept = np.arange(5)
        while len(kept):
            solution = np.linalg.solve(moments[np.ix_(kept, kept)], targets[kept])
            if solution.min() >= 0.0:
                break
            kept = np.delete(kept, solution.argmin())
        weights = np.zeros(5)
        weights[kept] = solution
        return weights

    def state(self) -> StepModelState:
        """What to publish."""
        a, b, c, d, e = (self._pace * each for each in self._coefficients)
        return StepModelState((a, b, c, d, e), self._quantile, self._error, self._observed)

    def _track(self, predicted: float, seconds: float) -> None:
        self._observed += 1
        above = seconds > predicted * self._quantile
        moved = self._quantile + _QUANTILE_STEP * (_QUANTILE if above else _QUANTILE - 1.0)
        self._quantile = min(max(moved, _QUANTILE_RANGE[0]), _QUANTILE_RANGE[1])
        if predicted > 0.0:  # no coefficient is above zero before the model has learned any
            ratio = min(max(self._pace * seconds / predicted, _PACE_RANGE[0]), _PACE_RANGE[1])
            self._pace += _PACE_STEP * (ratio - self._pace)
        weight = max(ERROR_WEIGHT, 1.0 / self._observed)
        self._error += weight * (abs(seconds - predicted) / seconds - self._error)
