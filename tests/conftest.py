"""What every test has: fixtures of the whole suite live here, those of one area beside its tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # tests.support, whatever pytest's import mode

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported, as transformers does: no GPU here

settings.register_profile("no deadline", deadline=None)  # how long an example takes says nothing of the code
settings.load_profile("no deadline")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background shell's children would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What modules made stays until the end: Python need not look through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Extensions count what is left at the end."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout."""
    return ROOT
