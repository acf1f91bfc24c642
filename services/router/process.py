"""One of several router processes: `python -m services.router.process` with its settings as JSON on stdin."""

import json
import sys

from services.common import lifecycle, logs
from services.common.settings import SettingsError, fail
from services.router.service import RouterService
from services.router.settings import RouterSettings

if __name__ == "__main__":
    try:
        settings = RouterSettings(**json.load(sys.stdin))
    except (SettingsError, ValueError) as error:
        fail(f"router process: {error}")
    logs.sign(router=settings.router_id or settings.mesh_listen)
    sys.exit(lifecycle.run(RouterService, settings))
