"""What an operator can choose about an engine. Frozen, plain values: it travels to the engine's process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from services.worker.scheduler.policy import SchedulerSettings

EngineKind = Literal["torch", "simulated"]
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "bfloat16", "float32"]
Quantization = Literal["none", "int8", "fp8"]
AttentionKind = Literal["auto", "triton", "flashinfer", "varlen", "sdpa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Engine settings; each default is right for most machines. The worker takes its flags from here."""

    model: Path  # a local Hugging Face directory; simulated needs no weights in it
    model_name: str = ""  # "": the directory's name
    engine: Annotated[EngineKind, Field(description="what computes; simulated: invented tokens")] = "torch"
    device: Annotated[Device, Field(description="auto: CUDA where there is one")] = "auto"
    device_index: Annotated[int, Field(ge=0, description="which CUDA device")] = 0
    dtype: Annotated[Dtype, Field(description="auto: bfloat16")] = "auto"
    quantization: Annotated[
        Quantization,
        Field(
            description="products in 8 bits. int8: CUDA, and CPU, there by groups of inputs where it has "
            "AVX512-VNNI; fp8: CUDA from compute capability 8.9 on"
        ),
    ] = "none"
    deterministic: Annotated[
        bool,
        Field(description="ids never depend on what runs beside; the start fails where that cannot be had"),
    ] = False
    attention: Annotated[
        AttentionKind,
        Field(
            description="CUDA; auto: the quickest as measured at the start; flashinfer: it compiles at the "
            "first start, for minutes, which auto does not wait for"
        ),
    ] = "auto"
    max_context: Annotated[
        int | None,
        Field(gt=0, description="tokens of one sequence; unset: the model's own, as far as KV memory allows"),
    ] = None
    kv_blocks: Annotated[
        int | None, Field(gt=0, description="KV blocks of 64 tokens; unset: from kv_memory_bytes")
    ] = None
    kv_memory_bytes: Annotated[
        int | None,
        Field(
            gt=0,
            description="memory of KV blocks; unset: CPU 1/4 of what is available, at most 4 GiB; "
            "CUDA what the largest step, measured, leaves of the card",
        ),
    ] = None
    max_seqs: Annotated[int, Field(ge=1, le=4096, description="sequences that run at once")] = 256
    hang_s: Annotated[
        float,
        Field(
            gt=0,
            description="the worker ends, for its supervisor to start another, when no step has finished for "
            "so long while there is work; longer where steps are, and half an hour for the first ones",
        ),
    ] = 30.0
    threads: Annotated[
        int | None, Field(ge=1, description="CPU threads of torch; unset: the cores this process may use")
    ] = None
    simulated_calibration: Annotated[
        Path | None, Field(description="simulated: file of step times; unset: steps take no time")
    ] = None
    simulated_seed: Annotated[
        int, Field(ge=0, lt=2**63, description="simulated: another one is another model")
    ] = 0
    simulated_noise: Annotated[
        float, Field(ge=0.0, le=1.0, description="simulated: deviation of the logarithm of steps' times")
    ] = 0.0
    simulated_answer_tokens: Annotated[
        int, Field(ge=1, description="simulated: median length of answers that end by themselves")
    ] = 128
    simulated_die_at_token: Annotated[
        int | None, Field(ge=1, description="simulated fault: the engine dies as it has this token")
    ] = None
    simulated_hang_at_token: Annotated[
        int | None, Field(ge=1, description="simulated fault: the step with this token never ends")
    ] = None
    simulated_slow_after_steps: Annotated[
        int, Field(ge=0, description="simulated fault: steps before it slows down")
    ] = 0
    simulated_slow_factor: Annotated[
        float, Field(gt=0.0, description="simulated fault: times as long takes each step after those")
    ] = 1.0
    simulated_drop_rate: Annotated[
        float, Field(ge=0.0, lt=1.0, description="simulated fault: part of the worker's frames that get lost")
    ] = 0.0
    simulated_load_factor: Annotated[
        float, Field(ge=0.0, description="simulated fault: times its load is what the worker says it is")
    ] = 1.0
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
