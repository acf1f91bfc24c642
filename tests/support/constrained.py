"""Structured output of the tiny model: an engine with grammars in a thread, and what it answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.worker.engine.base import LoadedEngine
from services.worker.engine.client import EngineClient
from services.worker.engine.load import load_engine
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.events import Finished, Rejected
from services.worker.scheduler.request import Grammar, Request, Sampling
from tests.support.offline import prompt_of, request_of
from tests.support.tiny_llama import TinyLlama, write_tiny_llama
from tests.support.tiny_tokenizer import tiny_tokenizer, write_tiny_tokenizer

EOS = 2
PATIENCE_S = 240.0
SCHEMAS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "data" / "schemas.json").read_text("utf-8")
)
TOKENIZER = tiny_tokenizer()


@dataclass
class Answered:
    """All that was heard of one request."""

    ids: list[int] = field(default_factory=list)
    end: Finished | Rejected | None = None

    @property
    def text(self) -> str:
        """The output without its end id."""
        return TOKENIZER.decode([token for token in self.ids if token != EOS], skip_special_tokens=False)


def write_model(directory: Path) -> Path:
    """A tiny model with its tokenizer; some logits belong to no token."""
    write_tiny_tokenizer(directory)
    return write_tiny_llama(directory, TinyLlama(layers=2, vocab=520))


@asynccontextmanager
async def constrained_engine(
    model: Path, *, run_ahead: int = 0, **settings: Any
) -> AsyncIterator[EngineClient]:
    """An engine for the time of the block; `run_ahead` as if it were on a GPU."""

    def load(wanted: EngineSettings) -> LoadedEngine:
        engine = load_engine(wanted)
        engine.runner.capabilities = engine.runner.capabilities._replace(run_ahead=run_ahead)  # type: ignore[misc]
        return engine

    made = {"device": "cpu", "dtype": "float32", "kv_blocks": 512, "max_seqs": 64, "threads": 1, **settings}
    engine = await EngineClient.start(EngineSettings(model=model, **made), loader=load, in_process=True)
    try:
        yield engine
    finally:
        await engine.close()


def constrained(handle: int, kind: str, source: Any, max_tokens: int = 400, **fields: Any) -> Request:
    """A request under a grammar; sampled with its handle as the seed unless told otherwise."""
    text = source if isinstance(source, str) else json.dumps(source)
    sampling = fields.pop("sampling", Sampling(temperature=1.0, seed=handle))
    prompt = fields.pop("prompt", prompt_of(20, seed=handle))
    grammar = Grammar(kind, text)  # type: ignore[arg-type]
    return request_of(handle, prompt, max_tokens, sampling=sampling, grammar=grammar, **fields)


async def answers(engine: EngineClient, *requests: Request) -> dict[int, Answered]:
    """Submits them together and hears them to their ends."""
    heard = submit(engine, *requests)
    await listen(engine, heard, lambda: all(each.end is not None for each in heard.values()))
    return heard


def submit(engine: EngineClient, *requests: Request) -> dict[int, Answered]:
    """What will be heard of them, by handle."""
    for request in requests:
        engine.submit(request)
    return {request.handle: Answered() for request in requests}


async def listen(engine: EngineClient, heard: dict[int, Answered], enough: Callable[[], bool]) -> None:
    """Adds what comes to `heard` until it is enough."""
    async with asyncio.timeout(PATIENCE_S):
        async for report in engine.reports():
            for news in report.outputs:
                heard[news.handle].ids.append(news.token)
            for end in (*report.terminals.finished, *report.terminals.rejected):
                heard[end.handle].end = end
            if enough():
                return
    raise AssertionError("the reports ended")
