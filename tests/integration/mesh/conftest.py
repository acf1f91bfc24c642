from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.mesh import Mesh
from tests.support.smollm2 import smollm2
from tests.support.tiny_llama import write_tiny_llama
from tests.support.tiny_tokenizer import write_tiny_tokenizer

__all__ = ["smollm2"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a million parameters with a byte-level tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_tokenizer(directory)
    write_tiny_llama(directory)
    return directory


@pytest_asyncio.fixture(scope="module")
async def mesh(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh with two workers on the tiny model in fp32, shared by the tests of one module."""
    directory = tmp_path_factory.mktemp("mesh")
    async with Mesh(directory, tiny_model, worker={"dtype": "float32", "threads": "1"}) as running:
        await asyncio.gather(running.add_worker(), running.add_worker())
        yield running
