"""A router names blocks as the workers do, and lets others run while it names many."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.kv_chain import chain_digests, chain_root
from services.common.scope import ScopeKeys
from services.router.chains import BLOCKS_A_TURN, ChainKind, chains, chains_at_once, packed

SCOPE = ScopeKeys(b"s" * 32)
KINDS = [ChainKind(b"n" * 32, 64), ChainKind(b"m" * 32, 64), ChainKind(b"n" * 32, 16)]


def as_a_worker(kind: ChainKind, ids: list[int]) -> bytes:
    key = SCOPE.kv_key(kind.numerics)
    root = chain_root(key, kind.numerics, kind.block_tokens)
    digests = chain_digests(key, root, np.array(ids, np.uint32), kind.block_tokens)
    return b"".join(each[:16] for each in digests)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 700), st.integers(0, 1 << 30))
def test_names_are_those_of_the_workers_but_for_the_last_id(length: int, seed: int) -> None:
    ids = [random.Random(seed + index).randrange(1 << 32) for index in range(length)]
    found = chains_at_once(SCOPE, KINDS, packed(ids))
    for kind in KINDS:
        digests = found[kind.key]
        assert digests.dtype == np.uint64
        assert digests.tobytes() == as_a_worker(kind, ids[:-1])


async def test_a_long_prompt_is_named_in_turns_and_alike() -> None:
    ids = packed(range(3 * BLOCKS_A_TURN * 64 + 7))
    others = 0

    async def something_else() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    busy = asyncio.ensure_future(something_else())
    found = await chains(SCOPE, KINDS[:1], ids)
    busy.cancel()
    assert found[KINDS[0].key].tobytes() == as_a_worker(KINDS[0], list(ids))
    assert others >= 2


@pytest.mark.parametrize("ids", [[], [5], list(range(63))])
async def test_a_short_prompt_has_no_blocks(ids: list[int]) -> None:
    found = await chains(SCOPE, KINDS[:2], packed(ids))
    assert all(len(each) == 0 for each in found.values())


async def test_without_a_scope_nothing_has_a_name() -> None:
    assert not await chains(None, KINDS, packed(range(1000)))
