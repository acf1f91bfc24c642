"""Which GPU is this worker's: each claims one by a lock file that the kernel frees when the process ends.

`docker compose --scale worker=N` gives every replica all GPUs. A worker takes the first whose lease is free
and sets CUDA_VISIBLE_DEVICES to its UUID, before anything imports torch. A worker that finds none free says
so rather than fill another's memory. Nothing is claimed where somebody chose already: CUDA_VISIBLE_DEVICES
set (Kubernetes' device plugin, an operator).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

from services.common.lifecycle import StartError
from services.worker.gpu.nvml import load_nvml, parts

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Lease(NamedTuple):
    """A claimed GPU. The descriptor is the claim: it is held for the life of the process."""

    uuid: str
    descriptor: int


def claim_gpu(
    lease_dir: Path, environment: MutableMapping[str, str], nvml: Callable[[], Any] = load_nvml
) -> Lease | None:
    """Claims a GPU and makes it the only visible one; None without a GPU or where one was chosen.

    Raises StartError when all GPUs are other workers', or leases cannot be written.
    """
    if VISIBLE in environment:
        return None
    uuids = device_uuids(nvml())
    if not uuids:
        return None
    for uuid in uuids:
        descriptor = _lock(lease_dir, uuid)
        if descriptor is not None:
            environment[VISIBLE] = uuid
            return Lease(uuid, descriptor)
    raise StartError(
        f"no GPU is free: other workers hold all {len(uuids)} of this machine (leases in {lease_dir})"
    )


def device_uuids(nvml: Any) -> list[str]:
    """UUIDs of all GPUs, MIG instances instead of the GPUs that they divide; none without a driver."""
    if nvml is None:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        return [part.uuid for part in parts(nvml)]
    finally:
        nvml.nvmlShutdown()


def _lock(lease_dir: Path, uuid: str) -> int | None:
    try:
        lease_dir.mkdir(parents=True, exist_ok=True)
        path = lease_dir / f"{uuid}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StartError(f"cannot write GPU leases to {lease_dir}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
