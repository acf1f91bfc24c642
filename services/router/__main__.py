"""`python -m services.router`."""

import sys

from services.common import lifecycle
from services.common.settings import load_or_exit
from services.router.service import RouterService
from services.router.settings import RouterSettings

if __name__ == "__main__":
    sys.exit(lifecycle.run(RouterService, load_or_exit(RouterSettings, sys.argv[1:])))
