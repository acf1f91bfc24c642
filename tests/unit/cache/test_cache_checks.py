from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from headrace.v1 import cache_pb2 as pb

from services.cache import checks
from services.common.errors import InvalidArgument

KEY, TAG = b"k" * 32, b"t" * 16
RESPONSE = pb.CACHE_KIND_RESPONSE


def fields(check: Callable[[Any], None], request: Any) -> list[str]:
    with pytest.raises(InvalidArgument) as caught:
        check(request)
    return [each.field for each in caught.value.violations]


def claim(**changes: Any) -> pb.LeaseQuotaRequest:
    good = {"tenant_tag": TAG, "quota": "tokens", "units_per_minute": 1, "burst_units": 1, "wanted_units": 1}
    return pb.LeaseQuotaRequest(router_id="r", claims=[pb.QuotaClaim(**{**good, **changes})])


def test_good_requests_pass() -> None:
    checks.lookup(pb.LookupRequest(kind=RESPONSE, keys=[KEY] * checks.MOST_KEYS))
    entry = pb.StoreEntry(key=KEY, value=bytes(checks.VALUE_BYTES), tenant_tag=TAG, ttl_s=1)
    checks.store(pb.StoreRequest(kind=pb.CACHE_KIND_ENCODING, entries=[entry]))
    checks.claims(claim(returned_units=0))


def test_a_wrong_key_is_named_by_its_place() -> None:
    request = pb.LookupRequest(kind=RESPONSE, keys=[KEY, b"short", KEY, KEY + b"!"])
    assert fields(checks.lookup, request) == ["keys[1]", "keys[3]"]


@pytest.mark.parametrize("kind", [0, 99])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    assert fields(checks.lookup, pb.LookupRequest(kind=kind, keys=[KEY])) == ["kind"]


@pytest.mark.parametrize("count", [0, checks.MOST_KEYS + 1])
def test_a_batch_has_limits(count: int) -> None:
    assert fields(checks.lookup, pb.LookupRequest(kind=RESPONSE, keys=[KEY] * count)) == ["keys"]
    entries = [pb.StoreEntry(key=KEY, tenant_tag=TAG)] * count
    assert fields(checks.store, pb.StoreRequest(kind=RESPONSE, entries=entries)) == ["entries"]


def test_all_that_is_wrong_with_an_entry_is_named() -> None:
    entry = pb.StoreEntry(key=b"", value=bytes(checks.VALUE_BYTES + 1), tenant_tag=TAG[1:], ttl_s=0)
    assert fields(checks.store, pb.StoreRequest(kind=RESPONSE, entries=[entry])) == [
        f"entries[0].{name}" for name in ("key", "tenant_tag", "value", "ttl_s")
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tenant_tag", b"x"),
        ("quota", "gold"),
        ("units_per_minute", 0),
        ("units_per_minute", math.nan),
        ("burst_units", math.inf),
        ("wanted_units", -1),
        ("returned_units", math.nan),
    ],
)
def test_a_claim_must_be_one(field: str, value: object) -> None:
    assert fields(checks.claims, claim(**{field: value})) == [f"claims[0].{field}"]


def test_a_snapshot_has_a_name_small_pieces_and_an_end() -> None:
    assert fields(checks.snapshot_name, "") == ["name"]
    assert fields(checks.snapshot_name, "n" * 129) == ["name"]
    large = pb.SaveSnapshotRequest(chunk=bytes(checks.CHUNK_BYTES + 1))
    assert fields(lambda piece: checks.snapshot_piece(piece, 0, 1 << 20), large) == ["chunk"]
    piece = pb.SaveSnapshotRequest(chunk=b"12")
    assert fields(lambda piece: checks.snapshot_piece(piece, 9, 10), piece) == ["chunk"]
    checks.snapshot_piece(piece, 8, 10)
