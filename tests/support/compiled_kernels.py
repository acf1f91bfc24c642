"""Compiles the GPU's kernels ahead of time for a Hopper card, as their launchers ask for them, without a GPU.

Run as a program: with TRITON_INTERPRET unset, as the interpreter replaces the compiler. Prints a line of JSON
a kernel: its name, bytes of shared memory and of spilled registers, and whether it uses the tensor cores.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from services.worker.engine.torch.cuda import kernels
from services.worker.engine.torch.cuda.arguments import (
    AttentionRows,
    GrammarMasks,
    LogprobsOut,
    SamplingState,
)

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.int16: "i16",
    torch.int32: "i32", torch.int64: "i64", torch.int8: "i8", torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8e4nv",
}  # fmt: skip
_LAUNCHES: list[Launch] = []  # of a process that compiles some of them
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Launch(NamedTuple):
    """A kernel and what it was called with."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


def record() -> list[Launch]:
    """From here on, launches are kept instead of run."""
    launches: list[Launch] = []

    def run(kernel: Any, *args: object, grid: object, warmup: bool, **named: object) -> None:
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | named
        launches.append(Launch(kernel, arguments, options))

    JITFunction.run = run
    return launches


def source(launch: Launch) -> ASTSource:
    """What the launch compiles, specialised as at run time."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{TYPES[value.dtype]}"
            if not parameter.do_not_specialize_on_alignment:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def stack(cubin: bytes) -> int:
    """Bytes of a thread's stack: registers that did not fit."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True
        ).stdout
    return int(re.findall(r"STACK:(\d+)", said)[0])


def compiled(launch: Launch) -> dict[str, Any]:
    """Compile a launch; raises what the compiler says."""
    binary = triton.compile(source(launch), target=HOPPER, options=launch.options)
    return {
        "kernel": launch.kernel.__name__,
        "shared": binary.metadata.shared,
        "stack": stack(binary.asm["cubin"]),
        "tensor_cores": "wgmma" in binary.asm["ptx"] or "mma.sync" in binary.asm["ptx"],
        "options": launch.options,
    }


def all_compiled(launches: list[Launch]) -> Iterator[dict[str, Any]]:
    """`compiled` of each in order, on all cores: forked processes have what no pipe could carry."""
    cores = len(os.sched_getaffinity(0))
    with get_context("fork").Pool(cores, _LAUNCHES.extend, (launches,)) as pool:
        yield from pool.imap(_compiled_at, range(len(launches)))


def _compiled_at(place: int) -> dict[str, Any]:
    return compiled(_LAUNCHES[place])


def attention(
    heads: int, kv_heads: int, head_dim: int, queries: int, *, dtype: torch.dtype = torch.bfloat16,
    deterministic: bool = False,
) -> None:  # fmt: skip
    """Launch attention of a bucket: `queries` tokens of one row, or as many decodes."""
    decodes = queries <= 8
    rows = AttentionRows(*(torch.zeros(queries + more, dtype=torch.int32) for more in (0, 1, 0)), queries)
    rows = rows._replace(max_queries=1 if decodes else queries)
    query, tables = torch.zeros(queries, heads, head_dim, dtype=dtype), torch.zeros(9, 64, dtype=torch.int32)
    pool = torch.zeros(2, 2, 64, kv_heads, head_dim, dtype=dtype)
    size = kernels.attention_workspace(
        queries, queries, heads, kv_heads, head_dim, 64, deterministic=deterministic
    )
    kernels.attend(
        query, pool, rows, tables, query, torch.zeros(size), scale=0.1, block_size=64,
        deterministic=deterministic,
    )  # fmt: skip


def rowwise() -> None:
    """Launch what a layer does to rows."""
    hidden, merged = (
        torch.zeros(4, 4096, dtype=torch.bfloat16),
        torch.zeros(4, 48 * 128, dtype=torch.bfloat16),
    )
    weight, table = hidden[0], torch.zeros(99, 64, dtype=torch.bfloat16)
    kernels.add_norm(hidden, hidden, weight, 1e-5, hidden)
    places, pool = torch.zeros(4, dtype=torch.int32), torch.zeros(2, 2, 64, 8, 128, dtype=torch.bfloat16)
    query, norm = torch.zeros(4, 32, 128, dtype=torch.bfloat16), weight[:128]
    kernels.place(merged, norm, norm, 1e-6, table, table, places, places, pool, query, 32, 8)
    kernels.gate(torch.zeros(4, 1024, dtype=torch.bfloat16), hidden[:, :512])


def sampling(rows: int = 2, vocab: int = 128_256) -> None:
    """Launch sampling and log-probabilities."""
    whole = torch.zeros(3, dtype=torch.int32)
    fp32, words = torch.zeros(3), torch.zeros(3, -(-vocab // 32), dtype=torch.int32)
    history = torch.zeros(3, vocab, dtype=torch.int16)
    state = SamplingState(
        fp32, whole, fp32.double(), fp32, fp32, fp32, fp32, words[:, :2], whole, words, history, whole
    )
    logits, workspace = torch.zeros(rows, vocab), torch.zeros(kernels.sampling_workspace(rows, vocab))
    masks = GrammarMasks(whole, words)
    kernels.sample(logits, whole, whole, masks, state, whole, workspace)
    out = LogprobsOut(torch.zeros(1), torch.zeros(1, 20), torch.zeros(1, 20, dtype=torch.int32))
    kernels.logprobs(logits, whole[:1], whole, out, torch.zeros(kernels.logprobs_workspace(1, vocab, 20)))


def main() -> Iterator[dict[str, Any]]:
    """Every kernel in the shapes that matter, and the ones that are hard to compile."""
    launches = record()
    for shape in ((32, 8, 128), (28, 4, 128), (9, 3, 80), (16, 2, 256)):
        attention(*shape, 8)
    for shape in ((32, 8, 128), (9, 3, 64)):
        attention(*shape, 2048)
    attention(32, 8, 128, 2048, deterministic=True)
    attention(16, 2, 256, 2048, dtype=torch.float32)
    rowwise()
    sampling()
    yield from all_compiled(launches)


if __name__ == "__main__":
    for line in main():
        print(json.dumps(line), flush=True)
