"""Small real processes for the supervisor: each becomes ready, logs, and obeys or not, as its test wants."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from services.cli.up.child import ChildSpec

PROGRAM = textwrap.dedent(
    """
    import os, signal, subprocess, sys, time
    directory, name, manner = sys.argv[1:]
    def note(kind):
        with open(f"{directory}/{kind}", "a") as file:
            file.write(name + "\\n")
    def leave(*_):
        note("ended")
        sys.exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if manner == "stubborn" else leave)
    print(f"{name} was here", flush=True)
    if manner == "broken":
        sys.exit("no model of that name")
    if manner == "parent":
        print("child", subprocess.Popen(["sleep", "600"]).pid, flush=True)
    note("started")
    open(f"{directory}/{name}.ready", "w").close()
    while True:
        time.sleep(60)
    """
)


def spec(directory: Path, name: str, manner: str = "obedient", **fields: Any) -> ChildSpec:
    """A child that is ready when its file is there."""
    return ChildSpec(
        name=name,
        command=(sys.executable, "-c", PROGRAM, str(directory), name, manner),
        environment={"PATH": os.environ["PATH"]},
        ready=_exists(directory / f"{name}.ready"),
        **fields,
    )


def _exists(path: Path) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        return os.path.exists(path)  # noqa: ASYNC240

    return probe


def noted(directory: Path, kind: str) -> list[str]:
    """The names of children that noted this, in order."""
    path = directory / kind
    return path.read_text().split() if path.exists() else []


def alive(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
