"""Our router under cProfile: `python -m bench.relay.profiled_router`; what it found goes to PROFILE_VARIABLE.

Where time goes, not how much: every call of Python costs more here.
"""

from __future__ import annotations

import cProfile
import os
import sys

from services.common import lifecycle
from services.common.settings import load_or_exit
from services.router.service import RouterService
from services.router.settings import RouterSettings

PROFILE_VARIABLE = "HEADRACE_BENCH_PROFILE"

if __name__ == "__main__":
    profile = cProfile.Profile()
    settings = load_or_exit(RouterSettings, sys.argv[1:])
    code = profile.runcall(lifecycle.run, RouterService, settings)
    profile.dump_stats(os.environ[PROFILE_VARIABLE])
    sys.exit(code)
