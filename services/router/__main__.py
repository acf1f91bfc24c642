"""`python -m services.router`."""

import sys

from services.common.settings import load_or_exit
from services.router.settings import RouterSettings


def main() -> int:
    """Runs one router process, or keeps several."""
    settings = load_or_exit(RouterSettings, sys.argv[1:])
    if settings.processes > 1:
        from services.router import processes

        return processes.run(settings)
    from services.common import lifecycle
    from services.router.service import RouterService

    return lifecycle.run(RouterService, settings)


if __name__ == "__main__":
    sys.exit(main())
