"""Writes bench/calibration/*.toml from data sheets and model shapes: python -m bench.calibrate.

Each coefficient is a roofline with an efficiency (research: inference-sim, Sarathi-Serve's own figures):

    token_s     = 2 * parameters / (flops * MFU)            arithmetic of one token's products
    weights_s   = weights_bytes / (bandwidth * MBU)         floor of a step: all weights are read once
    attention_s = 4 * layers * heads * head_dim / (flops * MFU * ATTENTION)     q.k and p.v of one pair
    context_s   = kv_bytes_per_token / (bandwidth * MBU)    a decode reads its whole context
    sequence_s  = 20 us: sampling and book-keeping           step_s = 1 ms: launches, host
    kv_tokens   = (memory * 0.9 - weights_bytes - 3 GB) / kv_bytes_per_token

They are derived, not measured; a worker's own step model (scheduler/budget.py) learns the truth online.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

DIRECTORY = Path(__file__).parent / "calibration"
MFU, MBU, ATTENTION = 0.6, 0.8, 0.7  # parts of the peak: large products, streaming reads, attention of MFU
STEP_S, SEQUENCE_S = 1e-3, 20e-6
MEMORY_PART, RUNTIME_BYTES = 0.9, 3e9


class Device(NamedTuple):
    """Of the data sheet: dense 16-bit FLOP/s, bytes/s, bytes."""

    key: str
    name: str
    flops: float
    bandwidth: float
    memory: float
    has_fp8: bool
    source: str


class Model(NamedTuple):
    """Of config.json; `parameters` counts the embedding, which makes a step a little dearer than it is."""

    key: str
    name: str
    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    eos: int
    bytes_a_weight: int
    source: str

    @property
    def weights_bytes(self) -> float:
        return self.parameters * self.bytes_a_weight

    @property
    def kv_bytes(self) -> int:
        """Of one token, keys and values in 16 bits."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


_NVIDIA = "NVIDIA data sheet"
DEVICES = (
    Device("h100", "NVIDIA H100 SXM 80 GB", 989e12, 3.35e12, 80e9, True, f"{_NVIDIA}: H100 Tensor Core GPU"),
    Device("a100", "NVIDIA A100 SXM 80 GB", 312e12, 2.039e12, 80e9, False, f"{_NVIDIA}: A100 80GB"),
    Device("h200", "NVIDIA H200 SXM 141 GB", 989e12, 4.8e12, 141e9, True, f"{_NVIDIA}: H200 Tensor Core GPU"),
    Device("l4", "NVIDIA L4 24 GB", 121e12, 0.3e12, 24e9, True, f"{_NVIDIA}: L4 Tensor Core GPU (dense)"),
)
_LLAMA = "config.json of meta-llama/Llama-3.1-8B-Instruct"
_QWEN = "config.json of Qwen/Qwen3-0.6B"
MODELS = (
    Model("8b", "Llama-3.1-8B bf16", 8.03e9, 32, 32, 8, 128, 128_256, 131_072, 128_009, 2, _LLAMA),
    Model("8b-fp8", "Llama-3.1-8B fp8", 8.03e9, 32, 32, 8, 128, 128_256, 131_072, 128_009, 1, _LLAMA),
    Model("0.6b", "Qwen3-0.6B bf16", 0.596e9, 28, 16, 8, 128, 151_936, 40_960, 151_645, 2, _QWEN),
)


def files() -> dict[str, str]:
    """The content of each calibration file by its name."""
    pairs = [(device, model) for device in DEVICES for model in MODELS]
    return {
        f"{device.key}-{model.key}.toml": content(device, model)
        for device, model in pairs
        if device.has_fp8 or model.bytes_a_weight > 1
    }


def content(device: Device, model: Model) -> str:
    """One file."""
    flops = device.flops * (2 if model.bytes_a_weight == 1 else 1)  # 8-bit products run at twice the rate
    bandwidth = device.bandwidth * MBU
    attention = 4 * model.layers * model.heads * model.head_dim
    room = device.memory * MEMORY_PART - model.weights_bytes - RUNTIME_BYTES
    dtype = "fp8" if model.bytes_a_weight == 1 else "bfloat16"
    return f"""\
# Written by `python -m bench.calibrate`, which says how each figure is derived.
# Derived, not measured; the device figures were not compared with the data sheets again.
# {device.name}: {flops / 1e12:.0f} TFLOP/s, {device.bandwidth / 1e12:.3g} TB/s, {device.memory / 1e9:.0f} GB
#   source: {device.source}
# {model.name}: {model.parameters / 1e9:.3g}e9 weights, {model.weights_bytes / 1e9:.3g} GB
#   KV: {model.kv_bytes} bytes a token
#   source: {model.source}
# Efficiencies: {MFU:.0%} of peak FLOP/s, {ATTENTION:.0%} of that in attention, {MBU:.0%} of bandwidth

device = "{device.name}"
model = "{model.name}"
dtype = "{dtype}"
kv_tokens = {int(room / model.kv_bytes)}
vocab_size = {model.vocab}
context_length = {model.context}
eos_id = {model.eos}
parameters = {model.parameters:.0f}
weights_bytes = {model.weights_bytes:.0f}

[step]  # seconds
step_s = {STEP_S:.4g}
token_s = {2 * model.parameters / (flops * MFU):.4g}
attention_s = {attention / (device.flops * MFU * ATTENTION):.4g}
context_s = {model.kv_bytes / bandwidth:.4g}
sequence_s = {SEQUENCE_S:.4g}
weights_s = {model.weights_bytes / bandwidth:.4g}
"""


def main() -> None:
    """Write all files."""
    argparse.ArgumentParser(description="Writes bench/calibration/*.toml from data sheets.").parse_args()
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in files().items():
        (DIRECTORY / name).write_text(text)


if __name__ == "__main__":
    main()
