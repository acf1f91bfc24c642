"""`python -m services.cache`."""

from __future__ import annotations

import sys

from services.cache.service import CacheService
from services.cache.settings import CacheSettings
from services.common.lifecycle import run
from services.common.settings import load_or_exit

if __name__ == "__main__":
    sys.exit(run(CacheService, load_or_exit(CacheSettings, sys.argv[1:])))
