"""Runs the `headrace` command as its user does: a process with arguments, input, output and a code."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import NamedTuple

TIMEOUT_S = 180.0


class Outcome(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


async def headrace(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Outcome:
    """Runs the command to its end."""
    process = await start(*arguments, env=env)
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), TIMEOUT_S)
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())


async def start(*arguments: str, env: dict[str, str] | None = None) -> asyncio.subprocess.Process:
    """Starts the command with pipes."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.cli", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**clean, **(env or {})},
    )
