from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from bench.relay.mesh import Site
from services.common.models import ModelDirectory
from tests.support.tiny_llama import TinyLlama, write_tiny_llama
from tests.support.tiny_tokenizer import write_tiny_tokenizer


@pytest.fixture(scope="session")
def invented_model(tmp_path_factory: pytest.TempPathFactory) -> ModelDirectory:
    """What simulated engines need of a model."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_tokenizer(directory)
    write_tiny_llama(directory)
    return ModelDirectory(directory, "tiny")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that real engines compute, with its tokenizer."""
    directory = tmp_path_factory.mktemp("real") / "tiny"
    write_tiny_tokenizer(directory)
    return write_tiny_llama(directory, TinyLlama(layers=2))


@pytest_asyncio.fixture(scope="module")
async def ground(
    invented_model: ModelDirectory, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """What all sites of a module share: a tokenizer service, and the secret that it knows."""
    with ExitStack() as children:
        found = Site(tmp_path_factory.mktemp("ground"), invented_model, children, step_s=0.0)
        await found.start_tokenizer()
        yield found


@pytest.fixture
def site(ground: Site, tmp_path: Path) -> Iterator[Site]:
    """Where processes are started that end with the test."""
    shutil.copy(ground.secret, tmp_path)
    with ExitStack() as children:
        yield Site(tmp_path, ground.model, children, step_s=0.0, tokenizer=ground.tokenizer)
