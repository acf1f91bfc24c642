"""TokenizerService: requests to items for the pool, outcomes to replies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from headrace.v1 import tokenizer_pb2, types_pb2

from services.common import errors
from services.common.errors import FieldViolation, InvalidArgument
from services.common.models import ModelDirectory
from services.common.rpc import Context
from services.tokenizer.batches import Batches
from services.tokenizer.encodings import EncodingCache
from services.tokenizer.metrics import TokenizerMetrics
from services.tokenizer.text import errors as text_errors
from services.tokenizer.text.encoder import TextEncoder
from services.tokenizer.text.items import Conversation, Item, Outcome, PlainText
from services.tokenizer.text.template import Message, tells_time

MAX_ITEMS = 1024
CHUNK_BYTES = 256 << 10
_REASONS: dict[type[text_errors.TextError], tokenizer_pb2.EncodeFailureReason] = {
    text_errors.InvalidText: tokenizer_pb2.ENCODE_FAILURE_REASON_INVALID_TEXT,
    text_errors.TemplateFailed: tokenizer_pb2.ENCODE_FAILURE_REASON_TEMPLATE,
    text_errors.TooLong: tokenizer_pb2.ENCODE_FAILURE_REASON_TOO_LONG,
    text_errors.TimedOut: tokenizer_pb2.ENCODE_FAILURE_REASON_TIMEOUT,
    text_errors.Overloaded: tokenizer_pb2.ENCODE_FAILURE_REASON_OVERLOADED,
    text_errors.ProcessLost: tokenizer_pb2.ENCODE_FAILURE_REASON_OVERLOADED,
}


class TokenizerServicer:
    """Serves one model's tokenizer and template."""

    def __init__(
        self,
        model: ModelDirectory,
        encoder: TextEncoder,
        batches: Batches,
        cache: EncodingCache,
        metrics: TokenizerMetrics,
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._batches = batches
        self._cache = cache
        self._metrics = metrics
        self._tells_time = tells_time(model.chat_template)
        self._digests = types_pb2.ModelDigests(
            tokenizer=model.tokenizer_digest, template=model.template_digest
        )

    async def Encode(
        self, request: tokenizer_pb2.EncodeRequest, context: Context
    ) -> tokenizer_pb2.EncodeResponse:
        """Encodes a batch; what was encoded before in this scope is not encoded again."""
        self._check_model(request.HasField("model"), request.model)
        _check_count(len(request.items))
        keys = [self._key(request.scope_digest, item) for item in request.items]
        known = [self._cache.get(key) for key in keys]
        todo = [position for position, ids in enumerate(known) if ids is None]
        outcomes: list[Outcome | None] = list(known)
        made = await self._batches.encode([_item(at, request.items[at]) for at in todo], request.tenant_tag)
        for position, outcome in zip(todo, made, strict=True):
            outcomes[position] = outcome
            if isinstance(outcome, list):
                self._cache.put(keys[position], outcome)
        self._count(len(keys) - len(todo), len(todo))
        return tokenizer_pb2.EncodeResponse(
            items=[_encoded(item, outcome) for item, outcome in zip(request.items, outcomes, strict=True)],
            digests=self._digests,
        )

    async def Decode(
        self, request: tokenizer_pb2.DecodeRequest, context: Context
    ) -> tokenizer_pb2.DecodeResponse:
        """Decodes a batch."""
        self._check_model(request.HasField("model"), request.model)
        _check_count(len(request.items))
        skip = not request.HasField("skip_special_tokens") or request.skip_special_tokens
        texts = []
        for position, item in enumerate(request.items):
            self._check_ids(position, item.ids)
            texts.append(self._encoder.decode(list(item.ids), skip_special_tokens=skip))
            await asyncio.sleep(0)
        return tokenizer_pb2.DecodeResponse(texts=texts)

    async def GetTokenizer(
        self, request: tokenizer_pb2.GetTokenizerRequest, context: Context
    ) -> AsyncIterator[tokenizer_pb2.GetTokenizerResponse]:
        """Streams the description, then the file unless the caller has it."""
        self._check_model(request.HasField("model"), request.model)
        yield tokenizer_pb2.GetTokenizerResponse(description=self._description())
        if request.known_digest == self._model.tokenizer_digest:
            return
        content = self._model.tokenizer_json
        for start in range(0, len(content), CHUNK_BYTES):
            yield tokenizer_pb2.GetTokenizerResponse(chunk=content[start : start + CHUNK_BYTES])

    def _key(self, scope: bytes, item: tokenizer_pb2.EncodeItem) -> bytes | None:
        """Where an item's encoding may be kept; None: nowhere."""
        if self._tells_time and item.HasField("chat"):
            return None
        return self._cache.key(scope, _canonical(item))

    def _count(self, hits: int, misses: int) -> None:
        self._metrics.cache_lookups.labels("hit").inc(hits)
        self._metrics.cache_lookups.labels("miss").inc(misses)

    def _check_model(self, named: bool, model: str) -> None:
        if named and model != self._model.name:
            raise errors.NotFound("this tokenizer serves another model", kind="model", name=model)

    def _check_ids(self, position: int, ids: Sequence[int]) -> None:
        if ids and max(ids) >= self._model.vocab_size:
            allowed = f"must be below {self._model.vocab_size}"
            raise InvalidArgument(FieldViolation(f"items[{position}].ids", allowed))

    def _description(self) -> tokenizer_pb2.TokenizerDescription:
        return tokenizer_pb2.TokenizerDescription(
            model=self._model.name,
            digests=self._digests,
            file_bytes=len(self._model.tokenizer_json),
            vocab_size=self._model.vocab_size,
            eos_token_ids=list(self._model.eos_ids),
            context_length=self._model.context_length,
            chat=self._model.chat_template is not None,
            tells_time=self._tells_time,
        )


def _item(position: int, item: tokenizer_pb2.EncodeItem) -> Item:
    limit = item.max_tokens if item.HasField("max_tokens") else None
    kind = item.WhichOneof("source")
    if kind == "text":
        special = not item.HasField("add_special_tokens") or item.add_special_tokens
        return PlainText(item.text, special, limit)
    if kind == "chat":
        turns = tuple(Message(each.role, each.content) for each in item.chat.messages)
        return Conversation(turns, max_tokens=limit)
    raise InvalidArgument(FieldViolation(f"items[{position}]", "must have a text or a chat"))


def _canonical(item: tokenizer_pb2.EncodeItem) -> bytes:
    """What the ids depend on: everything but the limit."""
    source = tokenizer_pb2.EncodeItem()
    source.CopyFrom(item)
    source.ClearField("max_tokens")
    return source.SerializeToString(deterministic=True)


def _encoded(item: tokenizer_pb2.EncodeItem, outcome: Outcome | None) -> tokenizer_pb2.EncodedItem:
    if isinstance(outcome, list) and item.HasField("max_tokens") and len(outcome) > item.max_tokens:
        outcome = text_errors.TooLong(f"{len(outcome)} tokens; at most {item.max_tokens} are allowed")
    if isinstance(outcome, list):
        return tokenizer_pb2.EncodedItem(ids=outcome)
    assert outcome is not None, "every item has an outcome"
    reason = _REASONS.get(type(outcome), tokenizer_pb2.ENCODE_FAILURE_REASON_INVALID_TEXT)
    failure = tokenizer_pb2.EncodeFailure(reason=reason, message=str(outcome))
    return tokenizer_pb2.EncodedItem(failure=failure)


def _check_count(count: int) -> None:
    if count > MAX_ITEMS:
        raise InvalidArgument(FieldViolation("items", f"at most {MAX_ITEMS}"))
