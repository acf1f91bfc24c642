"""Named ranges around launches, for Nsight: NVTX where the device is CUDA, nothing at all elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch

from services.worker.scheduler.step import Step

Mark = Callable[[Step], AbstractContextManager[None]]
_NOTHING = nullcontext()


def step_marks(device: torch.device) -> Mark:
    """What goes around the launch of a step. Costs some microseconds with CUDA, and nothing without."""
    return _nvtx if device.type == "cuda" else _nothing


@contextlib.contextmanager
def _nvtx(step: Step) -> Iterator[None]:
    torch.cuda.nvtx.range_push(f"step {step.number}: {len(step.slots)} rows, {len(step.tokens)} tokens")  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]


def _nothing(step: Step) -> AbstractContextManager[None]:
    return _NOTHING
