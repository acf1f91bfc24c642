"""`headrace version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed


def version() -> None:
    """Print the version of Headrace. And those of Python, gRPC, protobuf and torch."""
    parts = [f"headrace {_of('headrace')}", f"python {platform.python_version()}"]
    parts += [f"{name} {_of(name)}" for name in ("grpcio", "protobuf", "torch")]
    print(", ".join(parts))


def _of(name: str) -> str:
    try:
        return installed(name)
    except PackageNotFoundError:
        return "not installed"
