"""What a request of the cache service may hold; all checks raise InvalidArgument with the field's path."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from headrace.v1 import cache_pb2

from services.common.errors import FieldViolation, InvalidArgument

KEY_BYTES = 32
TAG_BYTES = 16
VALUE_BYTES = 256 << 10
CHUNK_BYTES = 64 << 10
MOST_KEYS = 256
LONGEST_TTL_S = 30 * 86400
NAME_CHARS = 128
RATES = ("requests", "tokens")
LEVELS = ("concurrency", "kv")
KINDS = {
    cache_pb2.CACHE_KIND_RESPONSE: "response",
    cache_pb2.CACHE_KIND_ENCODING: "encoding",
}


def lookup(request: cache_pb2.LookupRequest) -> None:
    """Checks a look-up."""
    _raise(_kind(request.kind))
    _raise(_batch("keys", request.keys))
    _raise(_size(f"keys[{i}]", key, KEY_BYTES) for i, key in enumerate(request.keys))


def store(request: cache_pb2.StoreRequest) -> None:
    """Checks entries to store."""
    _raise(_kind(request.kind))
    _raise(_batch("entries", request.entries))
    _raise(each for i, entry in enumerate(request.entries) for each in _entry(f"entries[{i}]", entry))


def tag(value: bytes) -> None:
    """Checks a tenant's tag."""
    _raise([_size("tenant_tag", value, TAG_BYTES)])


def claims(request: cache_pb2.LeaseQuotaRequest) -> None:
    """Checks quota claims."""
    _raise([_name("router_id", request.router_id)])
    _raise(_batch("claims", request.claims))
    _raise(each for i, claim in enumerate(request.claims) for each in _claim(f"claims[{i}]", claim))


def snapshot_name(value: str) -> None:
    """Checks the name of a snapshot."""
    _raise([_name("name", value)])


def snapshot_piece(piece: cache_pb2.SaveSnapshotRequest, before: int, most: int) -> None:
    """Checks a piece that follows `before` bytes."""
    size = len(piece.chunk)
    if size > CHUNK_BYTES:
        _raise([FieldViolation("chunk", f"has {size} bytes, at most {CHUNK_BYTES} are allowed")])
    if before + size > most:
        _raise([FieldViolation("chunk", f"the snapshot is larger than {most} bytes")])


def ttl(field: str, value: int) -> FieldViolation | None:
    """What is wrong with a time to live."""
    if 1 <= value <= LONGEST_TTL_S:
        return None
    return FieldViolation(field, f"is {value}, allowed are 1 to {LONGEST_TTL_S} seconds")


def snapshot_ttl(value: int) -> None:
    """Checks how long a snapshot is kept."""
    _raise([ttl("ttl_s", value)])


def _raise(found: Iterable[FieldViolation | None]) -> None:
    violations = [each for each in found if each is not None]
    if violations:
        raise InvalidArgument(*violations[:16])


def _kind(value: int) -> Iterable[FieldViolation]:
    if value not in KINDS:
        yield FieldViolation("kind", "is not a kind that is known")


def _batch(field: str, items: Sequence[object]) -> Iterable[FieldViolation]:
    if not 1 <= len(items) <= MOST_KEYS:
        yield FieldViolation(field, f"has {len(items)} entries, allowed are 1 to {MOST_KEYS}")


def _entry(field: str, entry: cache_pb2.StoreEntry) -> Iterable[FieldViolation | None]:
    yield _size(f"{field}.key", entry.key, KEY_BYTES)
    yield _size(f"{field}.tenant_tag", entry.tenant_tag, TAG_BYTES)
    if len(entry.value) > VALUE_BYTES:
        yield FieldViolation(
            f"{field}.value", f"has {len(entry.value)} bytes, at most {VALUE_BYTES} are allowed"
        )
    if entry.HasField("ttl_s"):
        yield ttl(f"{field}.ttl_s", entry.ttl_s)


def _claim(field: str, claim: cache_pb2.QuotaClaim) -> Iterable[FieldViolation | None]:
    yield _size(f"{field}.tenant_tag", claim.tenant_tag, TAG_BYTES)
    if claim.quota not in (*RATES, *LEVELS):
        yield FieldViolation(f"{field}.quota", f"is none of {', '.join((*RATES, *LEVELS))}")
    if claim.quota not in LEVELS:
        yield _number(f"{field}.units_per_minute", claim.units_per_minute, positive=True)
    yield _number(f"{field}.burst_units", claim.burst_units, positive=True)
    for name in ("wanted_units", "returned_units", "used_units"):
        yield _number(f"{field}.{name}", getattr(claim, name), positive=False)


def _number(field: str, value: float, *, positive: bool) -> FieldViolation | None:
    if math.isfinite(value) and (value > 0 if positive else value >= 0) and value <= 1e15:
        return None
    return FieldViolation(field, f"must be a number {'> 0' if positive else '>= 0'} and at most 1e15")


def _size(field: str, value: bytes, size: int) -> FieldViolation | None:
    return None if len(value) == size else FieldViolation(field, f"has {len(value)} bytes, not {size}")


def _name(field: str, value: str) -> FieldViolation | None:
    if 1 <= len(value) <= NAME_CHARS:
        return None
    return FieldViolation(field, f"has {len(value)} characters, allowed are 1 to {NAME_CHARS}")
