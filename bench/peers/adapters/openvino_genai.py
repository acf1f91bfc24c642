"""OpenVINO GenAI in process: its continuous batching pipeline, stepped by hand, without prefix caching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import openvino
import openvino_genai

from bench.peers.adapters.loop import Answer, Config, Job, Run, serve

CACHE_GIB = 1
STEP_TOKENS = 512  # most in a step, prompts and outputs
_HINTS = {"bfloat16": "bf16", "float32": "f32"}


@contextmanager
def start(config: Config) -> Iterator[Run]:
    """The pipeline over a converted model."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GIB
    scheduler.max_num_batched_tokens = STEP_TOKENS
    scheduler.max_num_seqs = config.streams
    scheduler.enable_prefix_caching = False
    scheduler.dynamic_split_fuse = True
    properties = {
        "INFERENCE_NUM_THREADS": config.threads,
        "INFERENCE_PRECISION_HINT": _HINTS[config.dtype],
        "ENABLE_CPU_PINNING": False,
    }
    pipeline = openvino_genai.ContinuousBatchingPipeline(config.converted, scheduler, "CPU", properties)
    numbers = count()
    yield lambda job: _run(pipeline, job, numbers)


class _Flight:
    """One request under way."""

    def __init__(self, pipeline: Any, number: int, prompt: list[int], greedy: Any) -> None:
        self.answer = Answer()
        self._handle = pipeline.add_request(number, openvino.Tensor(np.array([prompt], np.int64)), greedy)

    def listen(self) -> None:
        """Takes what is new."""
        while self._handle.can_read():
            for output in self._handle.read().values():
                self.answer.arrived(output.generated_ids)

    @property
    def running(self) -> bool:
        return bool(self._handle.get_status() == openvino_genai.GenerationStatus.RUNNING)


def _run(pipeline: Any, job: Job, numbers: Iterator[int]) -> list[Answer]:
    greedy = _greedy(job.output_tokens)
    waiting, flights = list(job.prompts), list[_Flight]()
    under_way: list[_Flight] = []
    while waiting or under_way:
        while waiting and len(under_way) < job.streams:
            flights.append(_Flight(pipeline, next(numbers), waiting.pop(0), greedy))
            under_way.append(flights[-1])
        pipeline.step()
        for flight in under_way:
            flight.listen()
        under_way = [flight for flight in under_way if flight.running]
    return [flight.answer for flight in flights]


def _greedy(tokens: int) -> Any:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = tokens
    config.ignore_eos, config.do_sample = True, False
    return config


if __name__ == "__main__":
    serve(start, ("openvino-genai", "openvino"))
