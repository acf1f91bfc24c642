"""The models that this router knows: their tokenizer, fetched once by digest, and their limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property

from headrace.v1 import tokenizer_pb2, types_pb2

from services.common import errors, logs
from services.common.text import ByteLevelFacts, TokenTable, UnsupportedTokenizer, byte_level_facts
from services.router.tokenizers import TokenizerFile, TokenizerPool

MAX_NAME = 128
"""Characters; no worker serves a model of a longer name."""
log = logs.get(__name__)


@dataclass(frozen=True)
class ServedModel:
    """What requests of a model need."""

    description: tokenizer_pb2.TokenizerDescription
    table: TokenTable
    facts: ByteLevelFacts | None = None

    @cached_property
    def name(self) -> str:
        return self.description.model

    @cached_property
    def digests(self) -> types_pb2.ModelDigests:
        return self.description.digests

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a turn."""
        return frozenset(self.description.eos_token_ids)

    def keeps(self, chat: types_pb2.ChatMessages | None) -> bool:
        """Whether a prompt's ids hold later, too: not of a conversation whose template tells the time."""
        return chat is None or not self.description.tells_time


class ModelBook:
    """Models by name. Asking for an unknown one asks the tokenizer service, once for all who wait."""

    def __init__(self, pool: TokenizerPool) -> None:
        self._pool = pool
        self._models: dict[str, ServedModel] = {}
        self._only: str | None = None
        self._locks: dict[str, asyncio.Lock] = {}

    def known(self) -> list[ServedModel]:
        """The models known so far, by name."""
        return [self._models[name] for name in sorted(self._models)]

    async def find(self, name: str | None) -> ServedModel:
        """The model with this name; the only one that the mesh serves when none is named.

        Raises:
            NotFound: there is no such model. InvalidArgument: a name is needed, there are several.
            Unavailable: no tokenizer service is there.
        """
        if name is not None and len(name) > MAX_NAME:
            raise errors.NotFound(f"the model {name[:MAX_NAME]!r}… is not served", kind="model", name=name)
        if name is None and len(self._models) > 1:
            names = ", ".join(sorted(self._models))
            raise errors.InvalidArgument(errors.FieldViolation("model", f"needed: the mesh serves {names}"))
        found = self._models.get(name or self._only or "")
        return found or await self._fetch_once(name)

    async def refresh(self, name: str) -> ServedModel:
        """Reads a model's description again, and its file where that has changed. Raises as `find`."""
        async with self._lock(name):
            return await self._fetch(name)

    async def _fetch_once(self, name: str | None) -> ServedModel:
        async with self._lock(name):
            return self._models.get(name or self._only or "") or await self._fetch(name)

    @asynccontextmanager
    async def _lock(self, name: str | None) -> AsyncIterator[None]:
        """One fetch of a name at a time; the lock is gone when nobody needs it."""
        lock = self._locks.setdefault(name or "", asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._locks.pop(name or "", None)

    async def _fetch(self, name: str | None) -> ServedModel:
        known = self._models.get(name or "")
        file = await self._pool.fetch(name, known.digests.tokenizer if known else b"")
        if known is not None and file.description.digests.tokenizer == known.digests.tokenizer:
            model = ServedModel(file.description, known.table, known.facts)
        else:
            model = await asyncio.to_thread(_open, file)
        self._models[model.name] = model
        if name is None:
            self._only = model.name
        log.info("model_known", model=model.name, tokenizer=model.digests.tokenizer.hex()[:16])
        return model


def _open(file: TokenizerFile) -> ServedModel:
    try:
        return ServedModel(file.description, TokenTable(file.content), byte_level_facts(file.content))
    except UnsupportedTokenizer as error:
        raise errors.FailedPrecondition(str(error), reason="UNSUPPORTED_TOKENIZER") from None
