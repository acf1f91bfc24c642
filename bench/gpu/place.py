"""Where a part of the benchmark runs: on a CUDA device, or dry, on the CPU with tiny sizes.

A dry run executes every line but the calls of CUDA and of Triton, so that a mistake shows without a GPU. Its
figures mean nothing, and it writes them nowhere but where it is told to.
"""

from __future__ import annotations

import gc
import importlib
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

MINUTE_S = 60.0


class NoDevice(Exception):
    """There is no CUDA device to measure."""


class OutOfTime(Exception):
    """The part's time is up; what was measured is kept."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A device and a time limit."""

    device: torch.device
    dry: bool  # tiny sizes
    on_card: bool  # the device has events, graphs and Triton
    ends_s: float  # of time.monotonic

    @classmethod
    def make(cls, *, dry: bool, minutes: float) -> Place:
        """Raises NoDevice where there is none and the run is not dry."""
        if not dry and not torch.cuda.is_available():
            raise NoDevice("there is no CUDA device; --dry runs everything on the CPU, with tiny sizes")
        where = torch.device("cpu") if dry else torch.device("cuda", 0)
        return cls(device=where, dry=dry, on_card=not dry, ends_s=time.monotonic() + minutes * MINUTE_S)

    @property
    def left_s(self) -> float:
        """Until the end of the part's time."""
        return self.ends_s - time.monotonic()

    def need(self, seconds: float) -> None:
        """Raises OutOfTime where so much is not left."""
        if self.left_s < seconds:
            raise OutOfTime(f"{seconds:.0f} s are needed, {max(0.0, self.left_s):.0f} s are left")

    def size(self, full: int, tiny: int) -> int:
        """The one for a GPU, or the one for a dry run."""
        return tiny if self.dry else full

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.on_card:
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Gives memory that nothing holds any more back to the driver."""
        gc.collect()
        if self.on_card:
            torch.cuda.empty_cache()

    def generator(self, seed: int) -> torch.Generator:
        """Of random numbers on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
        """Normal numbers: zeros would hide faults and run faster."""
        return torch.randn(*shape, generator=self.generator(seed), device=self.device).to(dtype)

    def kernels(self) -> ModuleType:
        """The kernels; of a dry run their references in plain torch."""
        name = "kernels" if self.on_card else "reference"
        return importlib.import_module(f"services.worker.engine.torch.cuda.{name}")

    def card(self) -> dict[str, Any]:
        """What the device says of itself."""
        if not self.on_card:
            return {"name": "dry run on the CPU"}
        found = torch.cuda.get_device_properties(self.device)
        free, total = torch.cuda.mem_get_info(self.device)
        return {
            "name": found.name,
            "multiprocessors": found.multi_processor_count,
            "l2_bytes": getattr(found, "L2_cache_size", None),
            "memory_bytes": total,
            "free_bytes": free,
        }
