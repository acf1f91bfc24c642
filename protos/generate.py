"""Generates the Python stubs of all protos: `make protos`, or `python protos/generate.py [DIRECTORY]`.

The stubs are committed, so that running Headrace needs no compiler; a test compares them to fresh ones.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROTOS = Path(__file__).parent


def generate(target: Path) -> None:
    """Writes messages, services and their types below `target`. Raises CalledProcessError."""
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("headrace/**/*.proto"))
    kinds = ("python", "pyi", "grpc_python", "mypy_grpc")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"),
            f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}",
            *(f"--{kind}_out={target}" for kind in kinds),
            *files,
        ],
        check=True,
    )


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS)
