from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_llama import write_tiny_llama
from tests.support.tiny_tokenizer import write_tiny_tokenizer


@pytest.fixture(scope="session")
def up_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a million parameters with a byte-level tokenizer."""
    directory = tmp_path_factory.mktemp("up") / "tiny"
    write_tiny_tokenizer(directory)
    write_tiny_llama(directory)
    return directory
