"""Tiny models and engines of the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a million-parameter Llama."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny products gain nothing from a second thread, and wait long for it on a busy machine."""
    torch.set_num_threads(1)
