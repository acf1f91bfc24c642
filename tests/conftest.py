"""What every test has: fixtures of the whole suite live here, those of one area beside its tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # tests.support, whatever pytest's import mode


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout."""
    return ROOT
