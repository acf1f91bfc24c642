"""What an operator can choose about an engine. Frozen, plain values: it travels to the engine's process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from services.worker.scheduler.policy import SchedulerSettings

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Engine settings; each default is right for most machines."""

    model: Path  # a local Hugging Face directory: config.json and safetensors
    model_name: str = ""  # "": the directory's name
    engine: Literal["torch"] = "torch"
    device: Device = "auto"  # auto: CUDA where there is one
    device_index: int = 0  # which CUDA device
    dtype: Dtype = "auto"  # auto: bfloat16
    max_context: int | None = (
        None  # tokens of one sequence; None: the model's own, as far as KV memory allows
    )
    kv_blocks: int | None = None  # of 64 tokens; None: from kv_memory_bytes
    kv_memory_bytes: int | None = (
        None  # None: CPU 1/4 of available memory, at most 4 GiB; CUDA 85 % of what is free
    )
    max_seqs: int = 256  # sequences that run at once
    threads: int | None = None  # CPU threads of torch; None: the cores this process may use
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
