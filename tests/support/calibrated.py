"""Simulated workers whose steps take as long as those of a small real device, and requests for them."""

from __future__ import annotations

from pathlib import Path

from headrace.v1 import router_pb2, types_pb2

from tests.support.generating import request
from tests.support.tiny_llama import write_tiny_llama
from tests.support.tiny_tokenizer import write_tiny_tokenizer


def simulated_model(directory: Path) -> Path:
    """A model directory without weights."""
    write_tiny_tokenizer(directory)
    write_tiny_llama(directory)
    (directory / "model.safetensors").unlink()
    return directory


def calibration(
    directory: Path, *, step_s: float = 0.004, token_s: float = 0.0001, kv_tokens: int = 65_536
) -> str:
    """A device's file; its path, for HEADRACE_WORKER_SIMULATED_CALIBRATION."""
    path = directory / f"device-{step_s:g}-{token_s:g}-{kv_tokens}.toml"
    path.write_text(f"kv_tokens = {kv_tokens}\n[step]\nstep_s = {step_s}\ntoken_s = {token_s}\n")
    return str(path)


def prompt(
    number: int, length: int, *, tokens: int = 8, like: int | None = None, **fields: object
) -> router_pb2.GenerateRequest:
    """A request of ids with an end of its own; `like`: it begins as that request does."""
    begin = [5 + (like if like is not None else number) % 200] * (length - 2)
    sampling = types_pb2.SamplingParams(ignore_eos=True)
    return request(
        ids=[*begin, 5 + number % 200, 5 + number // 200],
        max_tokens=tokens,
        sampling=sampling,
        seed=number,
        **fields,
    )
