"""Triton's interpreter, where it is to be more like a device."""

from __future__ import annotations

import numpy as np
import pytest
from triton.runtime import interpreter


def multiply_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tl.dot compute each row by itself, summing in the order of inputs, as tensor cores do.

    The interpreter asks BLAS, in which a row's last bits depend on its place in the tile.
    """

    def dot(_builder: object, a: object, b: object, d: object, *_: object) -> object:
        left, right = (each.data.astype(d.data.dtype) for each in (a, b))  # type: ignore[attr-defined]
        products = left[..., :, :, None] * right[..., None, :, :]
        return interpreter.TensorHandle(np.add.reduce(products, axis=-2) + d.data, d.dtype.scalar)  # type: ignore[attr-defined]

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
