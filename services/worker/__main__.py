"""`python -m services.worker`."""

from __future__ import annotations

import sys

from services.common.lifecycle import run
from services.common.settings import load_or_exit
from services.worker.service import WorkerService
from services.worker.settings import WorkerSettings

if __name__ == "__main__":
    sys.exit(run(WorkerService, load_or_exit(WorkerSettings, sys.argv[1:])))
