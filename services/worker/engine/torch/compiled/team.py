"""Runs kernels on the threads that torch's own products use: a second pool would fight for the same cores."""

from __future__ import annotations

import ctypes
import os
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import torch

_Parallel = Any  # GOMP_parallel(void (*kernel)(void *), void *args, unsigned threads, unsigned flags)


class Kernel(NamedTuple):
    """Compiled code that works through units of its arguments."""

    address: int
    serial: Any  # the same, callable by this thread alone


class Team:
    """Threads that share the units of a kernel."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._parallel = _openmp_of_torch() if threads > 1 else None

    def run(self, kernel: Kernel, units: int, *arguments: int) -> None:
        """Work through `units`; returns when all are done. Arguments: numbers and addresses."""
        if not units:
            return
        words = array("q", (0, units, *arguments))
        address, _ = words.buffer_info()
        if self._parallel is None or units == 1:
            kernel.serial(address)
        else:
            self._parallel(kernel.address, address, self.threads, 0)  # fewer would end the others


def kernel_of(compiled: Any) -> Kernel:
    """From what numba's cfunc made; it must outlive the kernel."""
    return Kernel(compiled.address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address))


def _openmp_of_torch() -> _Parallel | None:
    """The entry into the OpenMP runtime that this torch has loaded; None: it has none by that name."""
    folder = Path(torch.__file__).parent
    for path in sorted((*folder.glob("lib/lib*omp*"), *folder.parent.glob("torch.libs/lib*omp*"))):
        try:
            parallel = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
        except (OSError, AttributeError):  # not the one that is loaded, or another runtime
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel
    return None
