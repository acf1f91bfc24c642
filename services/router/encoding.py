"""Text to ids through the tokenizer services, with the ids of long texts kept in the cache."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from headrace.v1 import tokenizer_pb2, types_pb2

from services.common import errors
from services.common.errors import FieldViolation
from services.common.scope import ScopeKeys
from services.router.caching import ENCODING, CacheClient
from services.router.chains import packed
from services.router.encode_calls import EncodeCalls, Lane
from services.router.models import ServedModel

KIND = "encoding"
RETRY_S = 0.5


class Source(NamedTuple):
    """What to encode: exactly one is set."""

    text: str | None
    chat: types_pb2.ChatMessages | None

    @property
    def field(self) -> str:
        return "text" if self.text is not None else "chat"

    def item(self, max_tokens: int | None) -> tokenizer_pb2.EncodeItem:
        return tokenizer_pb2.EncodeItem(text=self.text, chat=self.chat, max_tokens=max_tokens)


class _Wanted(NamedTuple):
    """What one call of `Encoder.encode` wants; `item`: the source as the tokenizer service gets it."""

    source: Source
    item: tokenizer_pb2.EncodeItem
    model: ServedModel
    scope: ScopeKeys | None
    timeout_s: float
    tag: bytes

    def allows(self, ids: int) -> bool:
        """Whether so many ids are within the caller's limit."""
        return not self.item.HasField("max_tokens") or ids <= self.item.max_tokens


class InEncoding:
    """Bytes of each tenant that are being encoded; who has none has no row."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: dict[bytes, int] = {}

    @contextmanager
    def hold(self, tag: bytes, size: int) -> Iterator[None]:
        """Counts `size` bytes of a tenant until the block ends; what is alone always fits.

        Raises:
            QuotaExceeded: the tenant has too much in encoding.
        """
        held = self._held.get(tag, 0)
        if held and held + size > self._most_bytes:
            raise errors.QuotaExceeded(
                f"{self._most_bytes} bytes may be encoded at one time", retry_s=RETRY_S
            )
        self._held[tag] = held + size
        try:
            yield
        finally:
            self._held[tag] -= size
            if not self._held[tag]:
                del self._held[tag]


class Encoder:
    """Encodes prompts."""

    def __init__(
        self, calls: EncodeCalls, cache: CacheClient | None, long_bytes: int, in_encoding: InEncoding
    ) -> None:
        self._calls = calls
        self._cache = cache
        self._long_bytes = long_bytes
        self._in_encoding = in_encoding

    async def encode(
        self,
        source: Source,
        model: ServedModel,
        scope: ScopeKeys | None,
        *,
        limit: int | None,
        timeout_s: float,
        tag: bytes,
    ) -> array[int]:
        """The ids of a text or conversation, at most `limit`, for the tenant with that tag.

        Raises:
            QuotaExceeded: too much of this tenant is being encoded.
            InvalidArgument: it cannot be encoded, the template refuses it, or it has more ids than `limit`.
            DeadlineExceeded, Overloaded, Unavailable, NotFound: as the tokenizer service says.
        """
        wanted = _Wanted(source, source.item(limit), model, scope, timeout_s, tag)
        with self._in_encoding.hold(tag, wanted.item.ByteSize()):
            return await self._found_or_made(wanted)

    async def _found_or_made(self, wanted: _Wanted) -> array[int]:
        scope = wanted.scope
        cache = self._cache if wanted.item.ByteSize() > self._long_bytes else None
        if cache is None or scope is None or not wanted.model.keeps(wanted.source.chat):
            return await self._ask(wanted)
        key = _key(wanted.source, wanted.model, scope)
        found = _ids(await cache.look_up(ENCODING, [key], scope).value())
        if found is not None and wanted.allows(len(found)):
            return found
        ids = await self._ask(wanted)
        cache.store(ENCODING, key, _little_endian(ids).tobytes(), scope, wanted.tag)
        return ids

    async def _ask(self, wanted: _Wanted) -> array[int]:
        lane = Lane(wanted.model.name, wanted.scope.digest if wanted.scope else b"", wanted.tag)
        found = await self._calls.encode(lane, wanted.item, wanted.timeout_s)
        _check_digests(found.digests, wanted.model)
        if found.item.HasField("failure"):
            raise _failure(found.item.failure, wanted.source.field)
        return packed(found.item.ids)


def _key(source: Source, model: ServedModel, scope: ScopeKeys) -> bytes:
    content = source.item(None).SerializeToString(deterministic=True)
    return scope.cache_key(KIND, content, model.digests.tokenizer, model.digests.template)


def _ids(value: bytes | None) -> array[int] | None:
    if value is None or len(value) % 4:
        return None
    found = packed(())
    found.frombytes(value)
    return _little_endian(found)


def _little_endian(ids: array[int]) -> array[int]:
    """What is kept is little-endian whatever this machine is."""
    if sys.byteorder == "little":
        return ids
    swapped = ids[:]
    swapped.byteswap()
    return swapped


def _check_digests(used: types_pb2.ModelDigests, model: ServedModel) -> None:
    if used.tokenizer != model.digests.tokenizer or used.template != model.digests.template:
        raise errors.Unavailable(
            "the tokenizer services are changing to another version",
            reason="TOKENIZER_MISMATCH",
            retry_s=RETRY_S,
        )


def _failure(failure: tokenizer_pb2.EncodeFailure, field: str) -> errors.HeadraceError:
    if failure.reason == tokenizer_pb2.ENCODE_FAILURE_REASON_OVERLOADED:
        return errors.Overloaded("the tokenizer service is overloaded", retry_s=RETRY_S)
    if failure.reason == tokenizer_pb2.ENCODE_FAILURE_REASON_TIMEOUT:
        return errors.DeadlineExceeded(failure.message or "encoding took too long", reason="ENCODE_TIMEOUT")
    return errors.InvalidArgument(FieldViolation(field, failure.message or "cannot be encoded"))
