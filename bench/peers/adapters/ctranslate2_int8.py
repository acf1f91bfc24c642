"""CTranslate2 in process: static batches, as it has no continuous ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ctranslate2
from tokenizers import Tokenizer

from bench.peers.adapters.loop import Answer, Config, Job, Run, serve, whole


@contextmanager
def start(config: Config) -> Iterator[Run]:
    """A generator over a converted model."""
    generator = ctranslate2.Generator(
        config.converted,
        device="cpu",
        compute_type=config.dtype,
        intra_threads=config.threads,
        inter_threads=1,
    )
    tokenizer = Tokenizer.from_file(str(Path(config.model, "tokenizer.json")))
    yield lambda job: _run(generator, tokenizer, job)


def _run(generator: ctranslate2.Generator, tokenizer: Tokenizer, job: Job) -> list[Answer]:
    return [
        whole(result.sequences_ids[0])
        for batch in job.batches
        for result in generator.generate_batch(
            [[tokenizer.id_to_token(each) for each in prompt] for prompt in batch],
            max_batch_size=job.streams,
            max_length=job.output_tokens,
            min_length=job.output_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
        )
    ]


if __name__ == "__main__":
    serve(start, ("ctranslate2",))
