"""How far two results are apart, and what counts as equal: by ‖out − ref‖ / ‖ref‖; NaN never passes."""

from __future__ import annotations

import math

import torch

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-2}  # of one kernel against fp32 arithmetic


class CheckFailed(Exception):
    """Something is not what it must be; the message says what and by how much."""


def error_of(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative; infinite where the output has what is no number and the reference has none such."""
    wide, wanted = out.double(), reference.double()
    finite = torch.isfinite(wanted)
    if not torch.equal(torch.isfinite(wide), finite):
        return math.inf
    difference = torch.linalg.vector_norm((wide - wanted)[finite])
    return float(difference / torch.linalg.vector_norm(wanted[finite]).clamp(min=1e-30))


def expect_close(what: str, out: torch.Tensor, reference: torch.Tensor, most: float | None = None) -> str:
    """The error, for a table. Raises CheckFailed."""
    most = TOLERANCE[out.dtype] if most is None else most
    error = error_of(out, reference)
    if not error <= most:
        raise CheckFailed(f"{what}: error {error:.2e}, allowed is {most:.0e}")
    return f"{error:.1e}"


def expect_equal(what: str, found: object, wanted: object) -> None:
    """Raises CheckFailed."""
    same = torch.equal(found, wanted) if isinstance(found, torch.Tensor) else found == wanted  # type: ignore[arg-type]
    if not same:
        raise CheckFailed(f"{what}: {_short(found)}, expected {_short(wanted)}")


def agreement(found: list[list[int]], wanted: list[list[int]]) -> float:
    """Part of the ids that come before the first difference of their sequence."""
    total = sum(map(len, wanted))
    same = 0
    for mine, theirs in zip(found, wanted, strict=True):
        pairs = zip(mine, theirs, strict=False)
        same += next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(theirs)))
    return same / max(1, total)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
