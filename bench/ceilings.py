"""What the machine can do at most, measured now: memory it reads and products it computes in a second.

Measured in a process of its own with the engine's number of threads, before torch knows another number:
the best of several rounds, because a ceiling is what is possible.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from services.worker.engine.torch.linear import Linear

_READ_BYTES = 1 << 29  # far beyond any cache of a CPU
_CUDA_READ_BYTES = 1 << 32
_TOKENS, _WIDTH = 1024, 2048  # of the product
_CUDA_TOKENS, _CUDA_WIDTH = 8192, 8192
_ROUNDS = 8


class Ceilings(NamedTuple):
    """Of one device with one number of threads and one type of numbers."""

    bytes_per_s: float  # streaming read
    flops_per_s: float  # products in the best of the layouts that the engine has


def measure_ceilings(device: str, dtype: str, threads: int | None) -> Ceilings:
    """Takes a few seconds. `device` and `dtype` as torch names them, or int8 of quantised products."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_measure, args=(theirs, device, dtype, threads), name="headrace-ceilings"
    )
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        raise RuntimeError("the ceilings could not be measured; see above") from None
    finally:
        process.join()
    assert isinstance(found, Ceilings)
    return found


def _measure(connection: Connection, device: str, dtype: str, threads: int | None) -> None:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the engine's process has it
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    with connection, torch.inference_mode():
        where = torch.device(device)
        connection.send(Ceilings(_read_rate(where), _product_rate(where, dtype)))


def _read_rate(device: torch.device) -> float:
    import torch

    size = _READ_BYTES if device.type == "cpu" else _CUDA_READ_BYTES
    values = torch.ones(size // 4, dtype=torch.float32, device=device)
    return size / _least_s(values.sum, device)


def _product_rate(device: torch.device, dtype: str) -> float:
    import torch

    on_cpu = device.type == "cpu"
    tokens, width = (_TOKENS, _WIDTH) if on_cpu else (_CUDA_TOKENS, _CUDA_WIDTH)
    kind = torch.bfloat16 if dtype == "int8" else getattr(torch, dtype)
    x, weight = (torch.randn(rows, width, device=device).to(kind) for rows in (tokens, width))
    seconds = min(_least_s(partial(linear, x), device) for linear in _linears(weight, x, dtype))
    return 2.0 * tokens * width * width / seconds


def _linears(weight: torch.Tensor, x: torch.Tensor, dtype: str) -> Iterator[Linear]:
    """All that the engine might choose; with int8 by tokens, of inputs that are in 8 bits already."""
    import torch

    from services.worker.engine.torch.linear import Int8Linear, make_linear
    from services.worker.engine.torch.operators import Quantised

    if dtype == "int8":
        quantised = Quantised(torch.randint(0, 256, x.shape, dtype=torch.uint8), torch.ones(len(x), 1))
        yield Int8Linear(weight, quantise=lambda _: quantised)
    else:
        yield make_linear(weight)
    if weight.device.type == "cpu" and importlib.util.find_spec("numba"):
        yield from _compiled(weight, dtype)


def _compiled(weight: torch.Tensor, dtype: str) -> Iterator[Linear]:
    import torch

    from services.worker.engine.torch.compiled.int8_product import Int8Products, can_multiply_int8
    from services.worker.engine.torch.compiled.product import Products, can_multiply
    from services.worker.engine.torch.compiled.team import Team

    team = Team(torch.get_num_threads())
    if dtype == "bfloat16" and can_multiply():
        yield Products(team).linear(weight, None, wide=False)
    if dtype == "int8" and can_multiply_int8():
        yield Int8Products(team, weight.dtype).linear(weight, None, wide=False)


def _least_s(work: Callable[[], object], device: torch.device) -> float:
    return min(_seconds(work, device) for _ in range(_ROUNDS))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one round; on a device, until it has finished."""
    import torch

    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
