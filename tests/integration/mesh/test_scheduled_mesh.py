"""The router schedules real workers: warm ones first, tenants apart, urgent work before standing work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from headrace.v1 import admin_pb2, types_pb2

from services.common import identity
from tests.support.calibrated import calibration, prompt, simulated_model
from tests.support.generating import Stream, generate, request
from tests.support.mesh import Mesh
from tests.support.waiting import eventually, eventually_async

INTERACTIVE, STANDARD, BATCH = 1, 2, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_model(tmp_path_factory.mktemp("scheduled") / "model")


@pytest_asyncio.fixture(scope="module")
async def mesh(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """Two calibrated workers and two tenants."""
    directory = tmp_path_factory.mktemp("mesh")
    for tenant in ("light", "heavy"):
        (directory / f"{tenant}.key").write_text(identity.create_key(directory / "keys.toml", tenant))
    (directory / "tenants.toml").write_text('[tenants.heavy]\nmax_class = "standard"\n')
    router = {"keys_file": str(directory / "keys.toml"), "tenants_file": str(directory / "tenants.toml")}
    worker = {"engine": "simulated", "simulated_calibration": calibration(directory), "max_seqs": "8"}
    async with Mesh(directory, model, router=router, worker=worker) as running:
        await asyncio.gather(running.add_worker(), running.add_worker())
        yield running


def key_of(mesh: Mesh, tenant: str = "light") -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {(mesh.directory / f'{tenant}.key').read_text()}"),)}


async def finished(mesh: Mesh, wanted: Any, tenant: str = "light") -> Any:
    stream = await generate(mesh.stub, wanted, **key_of(mesh, tenant))
    assert stream.finished is not None
    return stream.finished


async def test_a_follow_up_goes_where_its_conversation_is_kept(mesh: Mesh) -> None:
    firsts = [await finished(mesh, prompt(number, 640)) for number in range(6)]
    assert len({each.worker_id for each in firsts}) == 2, "cold prompts were spread"
    assert all(each.usage.cached_tokens == 0 for each in firsts)
    await eventually(lambda: mesh.metric("headrace_prefix_index_blocks") >= 60, "workers told what they keep")
    for number, first in enumerate(firsts):
        again = await finished(mesh, prompt(100 + number, 660, like=number))
        assert again.worker_id == first.worker_id
        assert again.usage.cached_tokens >= 576
        assert again.shape.uncached_prompt_bucket <= 6


async def test_the_end_says_what_was_predicted_and_why_the_class(mesh: Mesh) -> None:
    named = await finished(mesh, prompt(900, 200, latency_class=STANDARD))
    assert (named.latency_class, named.asked_class) == (STANDARD, STANDARD)
    assert types_pb2.LatencyClass.Name(named.latency_class) == "LATENCY_CLASS_STANDARD"
    assert named.class_reason == 1
    inferred = await finished(mesh, prompt(901, 200))
    assert (inferred.latency_class, inferred.asked_class, inferred.class_reason) == (INTERACTIVE, 0, 2)
    capped = await finished(mesh, prompt(902, 200), "heavy")
    assert (capped.latency_class, capped.class_reason) == (STANDARD, 3)
    for each in (named, inferred, capped):
        assert each.timings.HasField("predicted_queue_us")
        assert 0 < each.timings.predicted_first_token_us < 60_000_000
    assert mesh.metric("headrace_prediction_ratio_count", what="first_token") >= 3


async def test_a_deadline_that_no_worker_can_keep_is_refused_at_once(mesh: Mesh) -> None:
    wanted = prompt(903, 1900, tokens=2)
    wanted.completion_deadline.FromMilliseconds(150)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(mesh.stub, wanted, **key_of(mesh))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert mesh.metric("headrace_admissions_total", verdict="deadline_infeasible") == 1


async def test_a_flood_of_one_tenant_leaves_the_other_its_turn(mesh: Mesh) -> None:
    flood = [
        asyncio.create_task(generate(mesh.stub, prompt(1000 + n, 300, tokens=150), **key_of(mesh, "heavy")))
        for n in range(120)
    ]
    await eventually(lambda: mesh.metric("headrace_queue_depth") > 20, "the flood waits")
    light = [
        await generate(mesh.stub, prompt(2000 + n, 100, latency_class=STANDARD), **key_of(mesh))
        for n in range(5)
    ]
    waiting = sum(not each.done() for each in flood)
    assert all(each.finished is not None for each in light)
    assert waiting > 30, "the light tenant did not wait for the flood"
    ends = await asyncio.gather(*flood, return_exceptions=True)
    done = [each for each in ends if isinstance(each, Stream)]
    assert all(len(each.token_ids) == 150 for each in done), "and the flood loses nothing"
    refused = [each for each in ends if isinstance(each, grpc.aio.AioRpcError)]
    assert {each.code() for each in refused} <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(done) + len(refused) == 120
    assert len(done) >= 40, "what was let in ended well"


async def test_urgent_work_passes_a_standing_backlog_which_goes_on_exactly(mesh: Mesh) -> None:
    backlog = [prompt(3000 + n, 200, tokens=150, latency_class=BATCH) for n in range(60)]
    running = [asyncio.create_task(generate(mesh.stub, each, **key_of(mesh, "heavy"))) for each in backlog]
    await eventually(
        lambda: mesh.metric("headrace_queue_depth", **{"class": "batch"}) > 20, "batch work waits"
    )
    urgent = [await generate(mesh.stub, prompt(4000 + n, 100), **key_of(mesh)) for n in range(6)]
    assert not all(each.done() for each in running), "interactive work passed the backlog"
    assert all(each.finished is not None for each in urgent)
    streams = [await each for each in running]
    assert [len(each.token_ids) for each in streams] == [150] * 60
    undisturbed: list[Stream] = [
        await generate(mesh.stub, each, **key_of(mesh, "heavy")) for each in backlog[:4]
    ]
    assert [each.token_ids for each in undisturbed] == [each.token_ids for each in streams[:4]]


async def test_a_worker_that_is_killed_is_known_for_nothing(mesh: Mesh) -> None:
    """Last: it takes a worker away."""
    before = await finished(mesh, prompt(950, 640))
    doomed = next(each for each in mesh.workers if each.name == before.worker_id)
    doomed.popen.kill()

    async def gone() -> bool:
        listed = await mesh.admin.ListWorkers(
            admin_pb2.ListWorkersRequest(), metadata=mesh.secret.metadata("admin")
        )
        return len(listed.workers) == 1

    await eventually_async(gone, "the router knows one worker")
    after = await finished(mesh, prompt(951, 660, like=950))
    assert after.worker_id != before.worker_id
    assert after.usage.cached_tokens == 0


async def test_nonsense_of_one_worker_harms_nobody(model: Path, tmp_path: Path) -> None:
    worker = {"engine": "simulated", "simulated_calibration": calibration(tmp_path), "max_seqs": "8"}
    async with Mesh(tmp_path, model, worker=worker) as mesh:
        strange = {"simulated_load_factor": "0", "simulated_drop_rate": "0.02", "simulated_seed": "0"}
        await asyncio.gather(mesh.add_worker(), mesh.add_worker(**strange))
        wanted = [prompt(n, 300, tokens=20) for n in range(24)]
        streams = await asyncio.gather(*(generate(mesh.stub, each) for each in wanted))
        assert [len(each.token_ids) for each in streams] == [20] * 24
        by = {each.finished.worker_id for each in streams if each.finished}
        assert by >= {"worker-0"}, "the honest one has its part"
        assert (await generate(mesh.stub, request(ids=[7] * 300, max_tokens=3))).finished is not None
