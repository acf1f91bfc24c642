"""A model behind a scheduler without processes: submit everything, run to the end, read the stories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from services.worker.engine.load import load_engine
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.intake import ModelFacts
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import NO_IDS, Request, Sampling
from tests.support.drive import Drive


def offline(
    model: Path, scheduler: SchedulerSettings | None = None, *, run_ahead: int = 0, **settings: Any
) -> Drive:
    """A fresh engine in fp32 on the CPU; `run_ahead` as if it were on a GPU."""
    engine = load_engine(
        EngineSettings(
            model=model,
            **{"device": "cpu", "dtype": "float32", "max_seqs": 32, "kv_blocks": 256, "threads": 1}
            | settings,
        )
    )
    engine.runner.capabilities = engine.runner.capabilities._replace(run_ahead=run_ahead)  # type: ignore[misc]
    description = engine.description
    facts = ModelFacts(description.vocab_size, description.eos_ids, description.numerics_id)
    return Drive(engine.runner, scheduler, facts)


def prompt_of(length: int, seed: int = 0, vocab: int = 512) -> np.ndarray:
    """Random ids without special tokens."""
    return np.random.default_rng(seed).integers(3, vocab, length).astype(np.int32)


def request_of(handle: int, prompt: np.ndarray, max_tokens: int = 24, **fields: Any) -> Request:
    """A request that does not stop by itself, unless told otherwise."""
    sampling = fields.pop("sampling", Sampling(ignore_eos=True))
    delivered = np.array(fields.pop("delivered", NO_IDS), np.int32)
    return Request(
        handle=handle,
        prompt=prompt,
        max_tokens=max_tokens,
        arrival_s=0.0,
        sampling=sampling,
        delivered=delivered,
        **fields,
    )
