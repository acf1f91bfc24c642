"""How long the steps of a device take with a model, and what else a simulated engine must know of the two."""

from __future__ import annotations

import math
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from services.worker.engine.errors import EngineLoadError
from services.worker.scheduler.step import StepCost


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step by its cost; the defaults are a forward pass that takes no time.

    With `weights_s` it is a roofline: reading the weights hides under the arithmetic of enough tokens.
    Without it, the scheduler's own linear model (scheduler/budget.py).
    """

    step_s: float = 0.0
    token_s: float = 0.0
    attention_s: float = 0.0  # per pair of a prefilled token and a token before it
    context_s: float = 0.0  # per token that a decode reads
    sequence_s: float = 0.0  # per decode
    weights_s: float = 0.0

    def of(self, cost: StepCost) -> float:
        """Seconds of one step."""
        linear = max(self.weights_s, self.token_s * cost.tokens)
        attention = self.attention_s * cost.attention + self.context_s * cost.context
        return self.step_s + linear + attention + self.sequence_s * cost.sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One device with one model."""

    device: str = "none"  # for people
    model: str = "none"
    dtype: str = "none"
    kv_tokens: int = 1 << 20  # tokens of KV that fit
    vocab_size: int = 32_000  # of this and the next two, config.json knows better where there is one
    context_length: int = 8192
    eos_id: int | None = 2
    parameters: int = 0
    weights_bytes: int = 0
    step: StepTime = StepTime()


NULL_FORWARD = Calibration()  # every step takes no time: what is left is the host's own cost


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file. Raises EngineLoadError: one line that says what to change."""
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EngineLoadError(
            f"cannot read simulated_calibration {path}: {getattr(error, 'strerror', error)}"
        ) from error
    try:
        step = _fields(StepTime, raw.pop("step", {}), "step.")
        return Calibration(step=StepTime(**step), **_fields(Calibration, raw, ""))
    except ValueError as error:
        raise EngineLoadError(f"simulated_calibration {path}: {error}") from error


def _fields(kind: type, raw: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The table's values, checked against the defaults of a dataclass: known names, numbers not negative."""
    known = {each.name: each.default for each in fields(kind) if each.default is not MISSING}
    for name, value in raw.items():
        if name not in known or name == "step":
            raise ValueError(f"{prefix}{name} is unknown; known are {', '.join(known)}")
        if not _fits(value, known[name]):
            raise ValueError(f"{prefix}{name} is {value!r}; allowed is {_kind(known[name])}")
    return raw


def _fits(value: object, like: object) -> bool:
    if isinstance(like, str):
        return isinstance(value, str)
    number = isinstance(value, int | float) if isinstance(like, float) else isinstance(value, int)
    return number and not isinstance(value, bool) and 0 <= float(str(value)) < math.inf


def _kind(like: object) -> str:
    return {str: "a text", float: "a number, not negative"}.get(type(like), "an integer, not negative")
