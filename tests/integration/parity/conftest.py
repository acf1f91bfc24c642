from __future__ import annotations

import pytest

from tests.support import reference
from tests.support.smollm2 import smollm2

__all__ = ["smollm2"]


@pytest.fixture(scope="session")
def expected() -> list[reference.ReferenceOutput]:
    """Greedy ids of `transformers` in fp32 for 40 conversations, each computed alone."""
    return reference.recorded()
