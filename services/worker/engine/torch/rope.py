"""Rotary position embedding, as `transformers` computes it: frequencies in fp32, rotation by halves."""

from __future__ import annotations

import math

import torch

from services.worker.engine.torch.config import ModelConfig, RopeScaling


class Rope:
    """Tables for all positions of a context."""

    def __init__(self, config: ModelConfig, max_len: int, dtype: torch.dtype, device: torch.device) -> None:
        frequencies = inverse_frequencies(config)
        angles = torch.outer(torch.arange(max_len, dtype=torch.float32), frequencies)
        self.cos = angles.cos().to(device, dtype)  # [max_len, head_dim / 2]
        self.sin = angles.sin().to(device, dtype)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions, each [tokens, 1, head_dim / 2]."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, head_dim], rotated."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def inverse_frequencies(config: ModelConfig) -> torch.Tensor:
    """Radians per position, [head_dim / 2], fp32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    if config.rope_scaling is None:
        return frequencies
    if config.rope_scaling.kind == "linear":
        return frequencies / config.rope_scaling.factor
    return _llama3(frequencies, config.rope_scaling)


def _llama3(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    stretched = frequencies / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = (scaling.original_context / wavelengths - low) / (high - low)
    blended = (1 - blend) * stretched + blend * frequencies
    is_long = wavelengths > scaling.original_context / low
    is_short = wavelengths < scaling.original_context / high
    return torch.where(is_long, stretched, torch.where(is_short, frequencies, blended))
