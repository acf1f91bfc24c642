"""The models that this router knows: their tokenizer, fetched once by digest, and their limits."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from headrace.v1 import tokenizer_pb2, types_pb2

from services.common import errors, logs
from services.common.text import TokenTable, UnsupportedTokenizer
from services.router.tokenizers import TokenizerFile, TokenizerPool

RETRY_S = 1.0
log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What requests of a model need."""

    description: tokenizer_pb2.TokenizerDescription
    table: TokenTable

    @property
    def name(self) -> str:
        return self.description.model

    @property
    def digests(self) -> types_pb2.ModelDigests:
        return self.description.digests


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
        if name is None and len(self._models) > 1:
            names = ", ".join(sorted(self._models))
            raise errors.InvalidArgument(errors.FieldViolation("model", f"needed: the mesh serves {names}"))
        found = self._models.get(name or self._only or "")
        return found or await self._fetch_once(name)

    async def refresh(self, name: str) -> ServedModel:
        """Reads a model again. Raises as `find`."""
        self._models.pop(name, None)
        return await self._fetch_once(name)

    async def _fetch_once(self, name: str | None) -> ServedModel:
        async with self._locks.setdefault(name or "", asyncio.Lock()):
            found = self._models.get(name or self._only or "")
            if found is None:
                try:
                    found = await self._fetch(name)
                finally:
                    self._locks.pop(name or "", None)
            return found

    async def _fetch(self, name: str | None) -> ServedModel:
        file = await self._pool.fetch(name)
        model = await asyncio.to_thread(_open, file)
        self._models[model.name] = model
        if name is None:
            self._only = model.name
        log.info("model_known", model=model.name, tokenizer=model.digests.tokenizer.hex()[:16])
        return model


def _open(file: TokenizerFile) -> ServedModel:
    try:
        return ServedModel(file.description, TokenTable(file.content))
    except UnsupportedTokenizer as error:
        raise errors.FailedPrecondition(str(error), reason="UNSUPPORTED_TOKENIZER") from None
