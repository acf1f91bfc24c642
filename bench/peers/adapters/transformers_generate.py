"""Plain torch: `generate` of transformers on static batches, with scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.peers.adapters.loop import Answer, Config, Job, Run, serve, whole


def load(config: Config) -> Any:
    """The model in the dtype of the configuration."""
    torch.set_num_threads(config.threads)
    dtype = getattr(torch, config.dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype, attn_implementation="sdpa")
    return model.eval()


@contextmanager
def start(config: Config) -> Iterator[Run]:
    """Static batches; one prompt at a time is streamed."""
    model = load(config)
    with torch.inference_mode():
        yield lambda job: [answer for batch in job.batches for answer in _batch(model, batch, job)]


class _Listener:
    """A streamer: the prompt comes first, then each id as it is chosen."""

    def __init__(self) -> None:
        self.answer = Answer()
        self._seen_prompt = False

    def put(self, ids: torch.Tensor) -> None:
        if self._seen_prompt:
            self.answer.arrived(ids.tolist())
        self._seen_prompt = True

    def end(self) -> None:
        """Nothing is held back."""


def _batch(model: Any, batch: list[list[int]], job: Job) -> list[Answer]:
    prompts = torch.tensor(batch)  # [prompts, tokens]: all of one length
    listener = _Listener() if len(batch) == 1 else None  # transformers streams batches of one only
    ids = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=job.output_tokens,
        min_new_tokens=job.output_tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=listener,
    )
    return [listener.answer] if listener else [whole(row) for row in ids[:, prompts.shape[1] :].tolist()]


if __name__ == "__main__":
    serve(start, ("transformers", "torch"))
