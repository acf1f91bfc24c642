"""What workers can run on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from services.cli.errors import CliError, UsageError
from services.cli.up import asked

VISIBLE = "CUDA_VISIBLE_DEVICES"
DEVICE = "HEADRACE_WORKER_DEVICE"
ENGINE = "HEADRACE_WORKER_ENGINE"


class Device(NamedTuple):
    """One worker's place.

    Attributes:
        kind: "cuda" or "cpu".
        label: for people.
        threads: of the CPU; None where a GPU computes.
        visible: the CUDA devices that the worker may see; None: it claims a free one itself.
    """

    kind: str
    label: str
    threads: int | None = None
    visible: str | None = None


def gpu_names() -> list[str]:
    """The NVIDIA GPUs of this machine; none where there is no driver or no `nvidia-ml-py`."""
    try:
        import pynvml
    except ImportError:
        return []
    return _names(pynvml)


def _names(nvml: Any) -> list[str]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [str(nvml.nvmlDeviceGetName(handle)) for handle in handles]
    finally:
        nvml.nvmlShutdown()


def choose(
    gpus: Sequence[str], workers: int | None, cores: int, environment: Mapping[str, str] = os.environ
) -> list[Device]:
    """One device a worker: each GPU that may be seen, or the CPU's cores but one in equal shares.

    Args:
        workers: how many; None: one a GPU, or one on the CPU, where more than cores take turns.

    Raises:
        CliError: the environment asks for a device that is not here, or for threads that cannot be.
    """
    if simulated(environment):
        return [Device("cpu", "simulated")] * (workers or 1)
    if _no_gpu(gpus, environment):
        return _on_cpu(workers or 1, cores, asked.threads(environment))
    if visible := environment.get(VISIBLE):
        tokens = [token.strip() for token in visible.split(",") if token.strip()]
        if workers and workers > len(tokens):
            raise UsageError(
                f"--workers {workers}: {VISIBLE}={visible} names {len(tokens)}, each for one worker"
            )
        return [Device("cuda", f"GPU {token}", visible=token) for token in tokens[: workers or len(tokens)]]
    label = gpus[0] if len(gpus) == 1 else f"one of {len(gpus)} × {gpus[0]}"
    return [Device("cuda", label) for _ in range(workers or len(gpus))]


def simulated(environment: Mapping[str, str]) -> bool:
    """Whether workers invent their tokens: neither a device nor weights are needed."""
    return environment.get(ENGINE) == "simulated"


def _no_gpu(gpus: Sequence[str], environment: Mapping[str, str]) -> bool:
    kind = environment.get(DEVICE, "auto")
    if kind not in ("auto", "cpu", "cuda"):
        raise UsageError(f"{DEVICE}={kind}: allowed are auto, cpu and cuda")
    none = not gpus or environment.get(VISIBLE) in ("", "-1")
    if none and kind == "cuda":
        check = f"check the driver, that nvidia-ml-py is installed, and {VISIBLE}"
        raise CliError(f"{DEVICE}=cuda, but no GPU is seen here: {check}")
    return none or kind == "cpu"


def _on_cpu(workers: int, cores: int, threads: int | None) -> list[Device]:
    """One core is left to the other services: with none, engines wait for threads that these hold up."""
    threads = threads or max(1, (cores - 1) // workers)
    label = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return [Device("cpu", label, threads)] * workers


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
