"""The host's CPU time a step with the CUDA runner, forward pass left out: python -m bench.cuda_host.

As bench.host_cost, with the production runner in the place of the one that computes nothing, on a device
without kernels: what fills pinned memory, changes slots, copies and reads results is real and runs on this
CPU; graphs replay nothing. Without a GPU the calls of CUDA's driver are missing, and the launches of steps
that run without a graph.

    cpu_ms     user and system time of the engine's process, all threads, a step
    beside     how much of it is the runner's: cpu_ms less that of a runner which does nothing, in pairs
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvloop

from bench.host_cost import CASES, LOGPROBS, Case, Sample, measure
from bench.null_runner import EOS, VOCAB, load_null
from bench.results_contract import RESULTS, Row, record, row
from services.worker.engine.base import EngineDescription, LoadedEngine
from services.worker.engine.settings import EngineSettings
from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.cuda.build import CudaParts, Wish, build_runner, plain_linear
from services.worker.engine.torch.cuda.device import DeviceMemory, Event, Stream, Work
from services.worker.scheduler.step import KVSpec

AIM_MS = 1.5  # at 256 sequences
CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    layers=1,
    hidden=64,
    heads=2,
    kv_heads=1,
    head_dim=32,
    ffn=64,
    vocab_size=VOCAB,
    context=1024,
    norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    tied=True,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
)


class NoKernels:
    """Each kernel does nothing and needs no workspace."""

    def __getattr__(self, name: str) -> Any:
        return (lambda *_, **__: 0) if name.endswith("_workspace") else (lambda *_, **__: None)


class NoEvent:
    """Reached as soon as it is recorded."""

    def wait(self) -> None:
        """Nothing is under way."""


class NoStream:
    """Runs what it is given at once."""

    def run(self, work: Work) -> None:
        work()

    def record(self, event: Event) -> None:
        """Nothing is under way."""

    def follow(self, event: Event) -> None:
        """Nothing is under way."""


class NoGraph:
    """Of no launches."""

    def replay(self) -> None:
        """Nothing to launch."""


class NoDevice:
    """A `Device` in this machine's memory, without time of its own."""

    where = torch.device("cpu")

    def stream(self) -> NoStream:
        return NoStream()

    def event(self) -> NoEvent:
        return NoEvent()

    def pinned(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.uint8)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def capture(self, stream: Stream, work: Work) -> NoGraph:
        return NoGraph()

    def measure(self, stream: Stream, work: Work) -> int:
        return 0

    def memory(self) -> DeviceMemory:
        return DeviceMemory(1 << 40, 1 << 40, 0, 0)

    def synchronize(self) -> None:
        """Nothing is under way."""


class Zeros:
    """A `WeightSource` of zeros."""

    def take(self, name: str, *shape: int) -> torch.Tensor:
        return torch.zeros(shape)

    def merge(self, rows_of: Mapping[str, int], *columns: int) -> torch.Tensor:
        return torch.zeros(sum(rows_of.values()), *columns)


def load_cuda_host(spec: KVSpec, logprobs: int, settings: EngineSettings) -> LoadedEngine:
    """The production runner, its forward pass left out; every row's token is one that ends nothing."""
    torch.set_num_threads(1)
    runner = build_runner(
        CONFIG,
        Zeros(),
        CudaParts("none", NoKernels(), plain_linear),
        Wish(spec.max_seqs, spec.max_len, spec.num_blocks),
        device=NoDevice(),
        dtype=torch.float32,
    )
    while runner.improve():
        pass
    with torch.inference_mode():
        runner._forward.chosen.fill_(EOS + 1)
    runner._forward.compute = lambda bucket, inputs: None  # type: ignore[method-assign]
    started = time.monotonic()
    description = EngineDescription(
        model="none",
        engine="torch",
        engine_version=str(torch.__version__),
        device="none",
        dtype="float32",
        vocab_size=VOCAB,
        eos_ids=(EOS,),
        context_length=spec.max_len,
        parameters=0,
        weights_bytes=0,
        weights_digest=bytes(32),
        numerics_id=bytes(32),
        spec=runner.spec,
        capabilities=runner.capabilities,
        load_seconds=time.monotonic() - started,
    )
    return LoadedEngine(runner, description)


def rows_of(case: Case, null: list[Sample], cuda: list[Sample]) -> Iterator[Row]:
    """The case's rows, with the aim where there is one."""
    cpu_ms = [sample.cpu_ms for sample in cuda]
    aimed = case.sequences == 256
    met = min(cpu_ms) <= AIM_MS if len(cpu_ms) == 1 else sorted(cpu_ms)[len(cpu_ms) // 2] <= AIM_MS
    yield row(
        case.name,
        "cpu_ms",
        "ms/step",
        cpu_ms,
        aim=f"<= {AIM_MS:g}" if aimed else None,
        met=met if aimed else None,
    )
    beside = [one.cpu_ms - other.cpu_ms for one, other in zip(cuda, null, strict=True)]
    yield row(case.name, "beside", "ms/step", beside)
    yield row(case.name, "batch", "sequences", [sample.batch for sample in cuda])


def main() -> None:
    """Measure all cases in turn, repeatedly; print the table, write the result."""
    options = argparse.ArgumentParser(description="The host's CPU time a step with the CUDA runner.")
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--sequences", type=int, nargs="+", default=[64, 256])
    options.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    given = options.parse_args()
    cases = [case for case in CASES if case.sequences in given.sequences]
    null: dict[Case, list[Sample]] = {case: [] for case in cases}
    cuda: dict[Case, list[Sample]] = {case: [] for case in cases}
    for seed in range(given.repeats):
        for case in cases:
            for samples, load in ((null, load_null), (cuda, load_cuda_host)):
                loader = partial(load, case.spec, LOGPROBS)
                samples[case].append(uvloop.run(measure(case, given.steps, seed, loader)))
            print(f"{case.name}: {null[case][-1]} alone, {cuda[case][-1]} with the runner", flush=True)
    rows = [each for case in cases for each in rows_of(case, null[case], cuda[case])]
    record("cuda-host-cost", rows, ["numpy", "torch"], given.results)


if __name__ == "__main__":
    main()
