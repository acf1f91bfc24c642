"""Nsight sees steps by name; without CUDA nothing is called."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from services.worker.engine.torch.cuda.inputs import empty_step
from services.worker.engine.torch.cuda.ranges import step_marks


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", said.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: said.append("end"))
    return said


def test_a_step_on_cuda_is_a_named_range_that_ends_whatever_happens(said: list[str]) -> None:
    step = replace(empty_step(), number=7, slots=np.arange(3, dtype=np.int32), tokens=np.zeros(9, np.int32))
    mark = step_marks(torch.device("cuda"))
    with mark(step):
        said.append("launch")
    with pytest.raises(RuntimeError), mark(step):
        raise RuntimeError
    named = "step 7: 3 rows, 9 tokens"
    assert said == [named, "launch", "end", named, "end"]


def test_without_cuda_there_is_none(said: list[str]) -> None:
    with step_marks(torch.device("cpu"))(empty_step()):
        pass
    assert said == []
