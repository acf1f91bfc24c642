"""The walls of the house: who may import whom. Read from the source, so that a late import counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVICES = ("router", "tokenizer", "worker", "cache", "cli")
PURE = ("services.router.policy", "services.worker.scheduler")
IMPURE = ("grpc", "asyncio", "redis", "torch")
ROOT = Path(__file__).parent.parent.parent


def modules(folder: str) -> dict[str, ast.Module]:
    """All modules below a folder of the checkout, by dotted name, parsed."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in paths
    }


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a module imports, wherever it does; `from a import b` counts as a and as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of the packages or lies in it."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def breaches(importers: str, *forbidden: str, except_in: tuple[str, ...] = ()) -> list[str]:
    """`module imports name` for every import of a forbidden package below `importers`."""
    return [
        f"{module} imports {name}"
        for module, tree in modules(importers.replace(".", "/")).items()
        if not within(module, *except_in)
        for name in imports(tree)
        if within(name, *forbidden)
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_services_meet_on_the_wire_only(service: str) -> None:
    others = [f"services.{other}" for other in SERVICES if other != service]
    assert breaches(f"services.{service}", *others) == []


def test_what_all_share_knows_no_service() -> None:
    assert breaches("services.common", *(f"services.{service}" for service in SERVICES)) == []


@pytest.mark.parametrize("package", PURE)
def test_policies_do_no_io_and_have_no_loop(package: str) -> None:
    assert modules(package.replace(".", "/")), f"{package} is gone"
    assert breaches(package, *IMPURE) == []


def test_torch_is_known_to_engines_only() -> None:
    assert breaches("services", "torch", except_in=("services.worker.engine",)) == []


def test_what_is_shipped_needs_neither_tests_nor_benchmarks() -> None:
    assert breaches("services", "tests", "bench") == []
    assert breaches("protos", "tests", "bench", "services") == []


def loaded_by(package: str) -> set[str]:
    """Top-level packages in memory after importing all modules below a package, in a process of its own."""
    names = [name for name in modules(package.replace(".", "/")) if not name.endswith("__main__")]
    lines = [f"import {name.removesuffix('.__init__')}" for name in names]
    lines.append("import sys; print(*{name.partition('.')[0] for name in sys.modules})")
    command = [sys.executable, "-c", "\n".join(lines)]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return set(outcome.stdout.split())


@pytest.mark.parametrize("package", PURE)
def test_policies_load_alone(package: str) -> None:
    assert loaded_by(package).isdisjoint({"grpc", "redis", "torch", "uvloop"})


@pytest.mark.parametrize("service", [service for service in SERVICES if service != "worker"])
def test_images_without_torch_hold_all_that_their_service_loads(service: str) -> None:
    assert "torch" not in loaded_by(f"services.{service}")
