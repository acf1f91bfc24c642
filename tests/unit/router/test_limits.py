"""What one tenant may have at one time and in a minute."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from services.common.errors import AlreadyExists, Overloaded, QuotaExceeded
from services.common.identity import Tenant
from services.router.limits import Gate

A, B = Tenant(name="a"), Tenant(name="b")


async def test_a_name_is_taken_only_within_its_tenant_and_while_it_runs() -> None:
    gate = Gate(1000)
    first = gate.enter(A, "r", 1)
    gate.enter(B, "r", 1)
    with pytest.raises(AlreadyExists):
        gate.enter(A, "r", 1)
    first.leave()
    gate.enter(A, "r", 1)


async def test_requests_at_one_time_are_bounded_and_given_back() -> None:
    gate, tenant = Gate(1000), Tenant(name="a", concurrent_requests=2)
    first = gate.enter(tenant, "1", 1)
    gate.enter(tenant, "2", 1)
    with pytest.raises(QuotaExceeded):
        gate.enter(tenant, "3", 1)
    gate.enter(B, "3", 1)
    first.leave()
    gate.enter(tenant, "3", 1)


async def test_requests_a_minute_are_bounded_and_say_when_to_retry() -> None:
    gate, tenant = Gate(1000), Tenant(name="a", requests_per_minute=3)
    for number in range(3):
        gate.enter(tenant, str(number), 1).leave()
    with pytest.raises(QuotaExceeded) as caught:
        gate.enter(tenant, "4", 1)
    assert caught.value.retry_s is not None
    assert 0 < caught.value.retry_s <= 20.5


async def test_tokens_are_charged_as_they_are_used() -> None:
    gate, tenant = Gate(1000), Tenant(name="a", tokens_per_minute=100)
    share = gate.enter(tenant, "1", 1)
    share.charge(5000)
    share.leave()
    with pytest.raises(QuotaExceeded):
        gate.enter(tenant, "2", 1)


async def test_changed_quotas_hold_at_once() -> None:
    gate = Gate(1000)
    gate.enter(Tenant(name="a", requests_per_minute=1), "1", 1)
    with pytest.raises(QuotaExceeded):
        gate.enter(Tenant(name="a", requests_per_minute=1), "2", 1)
    gate.enter(Tenant(name="a", requests_per_minute=10), "2", 1)


async def test_waiting_bytes_are_bounded_per_tenant_and_in_all_until_work_starts() -> None:
    gate, tenant = Gate(150), Tenant(name="a", queued_bytes=100)
    first = gate.enter(tenant, "1", 80)
    with pytest.raises(QuotaExceeded):
        gate.enter(tenant, "2", 30)
    with pytest.raises(Overloaded):
        gate.enter(B, "2", 80)
    first.started()
    second = gate.enter(tenant, "2", 100)
    second.leave()
    first.leave()
    assert gate.queued_bytes == 0


async def test_tenants_that_flood_leave_a_part_of_what_may_wait_to_who_comes_next() -> None:
    gate, passes = Gate(1200), []
    for number in range(1000):
        for flooder in ("a", "b"):
            with suppress(Overloaded):
                passes.append(gate.enter(Tenant(name=flooder), str(number), 10))
    assert gate.queued_bytes <= 1010
    passes.append(gate.enter(Tenant(name="chat"), "1", 100))
    for each in passes:
        each.leave()
    assert gate.queued_bytes == 0
    gate.enter(Tenant(name="alone"), "1", 590)
    gate.enter(Tenant(name="alone"), "2", 590)


async def test_a_gate_is_empty_when_all_have_left() -> None:
    gate = Gate(1000)
    await gate.emptied()
    share = gate.enter(A, "r", 1)
    waiting = asyncio.ensure_future(gate.emptied())
    await asyncio.sleep(0)
    assert not waiting.done()
    share.leave()
    await waiting
