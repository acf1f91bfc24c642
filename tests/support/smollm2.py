"""The default model for tests marked `smollm2`: resolved once a session, from the user's own cache."""

import sys

import pytest

from services.common.models import ModelDirectory, progress_to, resolve


@pytest.fixture(scope="session")
def smollm2() -> ModelDirectory:
    """SmolLM2-135M-Instruct, downloaded and converted at the first use on a machine."""
    return resolve("default", progress=progress_to(sys.stderr))
