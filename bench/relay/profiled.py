"""A service of ours under cProfile: `python -m bench.relay.profiled router|worker`.

What it found goes to the file that PROFILE_VARIABLE names, for pstats. It says where time goes, not how much:
every call of Python costs more here.
"""

from __future__ import annotations

import cProfile
import os
import sys

from services.common import lifecycle
from services.common.settings import load_or_exit
from services.router.service import RouterService
from services.router.settings import RouterSettings
from services.worker.service import WorkerService
from services.worker.settings import WorkerSettings

PROFILE_VARIABLE = "HEADRACE_BENCH_PROFILE"


def main(service: str, arguments: list[str]) -> int:
    """Serves until ended; returns the exit code."""
    profile = cProfile.Profile()
    if service == "router":
        code = profile.runcall(lifecycle.run, RouterService, load_or_exit(RouterSettings, arguments))
    else:
        code = profile.runcall(lifecycle.run, WorkerService, load_or_exit(WorkerSettings, arguments))
    profile.dump_stats(os.environ[PROFILE_VARIABLE])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
