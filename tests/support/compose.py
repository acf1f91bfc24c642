"""What the real Compose binary makes of docker-compose.yaml and its overrides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
GPU = ("docker-compose.yaml",)
CPU = (*GPU, "deploy/compose.cpu.yaml")
Project = dict[str, Any]


def render(files: tuple[str, ...], variables: dict[str, str] | None = None) -> Project:
    """The project as `docker compose config` renders it; `variables` are those of the user's environment.

    Raises:
        AssertionError: Compose refuses the files; with its message.
    """
    binary = Path(sys.executable).parent / "docker-compose"
    flags = [flag for file in files for flag in ("-f", file)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    outcome = subprocess.run(
        [binary, *flags, "config", "--format", "json"],
        cwd=ROOT,
        env={**clean, **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    project: Project = json.loads(outcome.stdout)
    return project


def seconds(duration: str) -> float:
    """A duration as Compose writes it, such as `2m0s`."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    total, digits = 0.0, ""
    for sign in duration:
        if sign in units:
            total += float(digits) * units[sign]
            digits = ""
        else:
            digits += sign
    return total
