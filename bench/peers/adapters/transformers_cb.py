"""Continuous batching of transformers, in process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from bench.peers.adapters.loop import Answer, Config, Job, Run, serve
from bench.peers.adapters.transformers_generate import load

POLL_S = 1.0
SILENCE_S = 120.0
_NO_EOS = -1


@contextmanager
def start(config: Config) -> Iterator[Run]:
    """The manager's thread runs while a job does, so that it takes nothing from the others."""
    model = load(config)
    yield lambda job: _run(model, config, job)


def _run(model: Any, config: Config, job: Job) -> list[Answer]:
    generation = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=job.output_tokens, do_sample=False, eos_token_id=_NO_EOS, pad_token_id=0
    )
    batching = ContinuousBatchingConfig(
        num_blocks=256,
        page_size=32,
        max_batch_tokens=512,
        max_requests_per_batch=config.streams,
        use_cuda_graph=False,
        use_async_batching=False,
        allow_block_sharing=False,
    )
    with model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=batching
    ) as manager:
        return _drive(manager, job)


def _drive(manager: Any, job: Job) -> list[Answer]:
    waiting, answers, running = list(job.prompts), dict[str, Answer](), set[str]()
    silent_s = 0.0
    while waiting or running:
        while waiting and len(running) < job.streams:
            answer = Answer()
            name = manager.add_request(
                waiting.pop(0), max_new_tokens=job.output_tokens, streaming=True, eos_token_id=_NO_EOS
            )
            answers[name] = answer
            running.add(name)
        output = manager.get_result(timeout=POLL_S)
        if output is None:
            silent_s += POLL_S
            if silent_s >= SILENCE_S:
                raise TimeoutError(f"nothing came for {SILENCE_S:g} s")
            continue
        silent_s = 0.0
        _take(output, answers[output.request_id])
        if output.is_finished():
            running.discard(output.request_id)
    return list(answers.values())


def _take(output: Any, answer: Answer) -> None:
    if output.error:
        raise RuntimeError(str(output.error))
    answer.arrived(output.generated_tokens[len(answer.ids) :])


if __name__ == "__main__":
    serve(start, ("transformers", "torch"))
