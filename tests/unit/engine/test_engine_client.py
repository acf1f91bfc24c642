"""The engine behind its pipe: in a process of its own, and in a thread with the same interface."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from services.worker.engine.client import EngineClient
from services.worker.engine.errors import EngineDied, EngineLoadError, ModelFormatError
from services.worker.engine.report import StepReport, TokenReport
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.events import RejectReason
from services.worker.scheduler.request import FinishReason, Request, Sampling
from tests.support import engines
from tests.support.fake_runner import VOCAB, expected_output
from tests.support.offline import offline, prompt_of, request_of

SETTINGS = EngineSettings(model=Path("/nowhere"))
PATIENCE_S = 30.0


def fake_request(handle: int, max_tokens: int = 20, length: int = 100, **fields: object) -> Request:
    prompt = np.random.default_rng(handle).integers(8, VOCAB, length).astype(np.int32)
    return Request(handle=handle, prompt=prompt, max_tokens=max_tokens, arrival_s=0.0, **fields)  # type: ignore[arg-type]


@pytest.fixture(params=[True, False], ids=["thread", "process"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[EngineClient]:
    client = await EngineClient.start(SETTINGS, loader=engines.load_fake, in_process=request.param)
    yield client
    await client.close()


async def until_ended(engine: EngineClient, *handles: int) -> list[StepReport]:
    """All reports until each of the handles has ended."""
    reports, open_handles = [], set(handles)
    async with asyncio.timeout(PATIENCE_S):
        async for report in engine.reports():
            reports.append(report)
            open_handles -= {end.handle for ends in report.terminals for end in ends}
            if not open_handles:
                return reports
    raise AssertionError("the reports ended")


def tokens_of(reports: list[StepReport], handle: int) -> list[int]:
    news = [news for report in reports for news in report.outputs if news.handle == handle]
    assert [each.output_index for each in news] == list(range(len(news)))
    return [each.token for each in news]


async def test_tokens_come_in_order_and_end_once(engine: EngineClient) -> None:
    requests = [fake_request(handle) for handle in range(1, 9)]
    for each in requests:
        number = engine.submit(each)
    reports = await until_ended(engine, *range(1, 9))
    for each in requests:
        assert tokens_of(reports, each.handle) == expected_output(each, engine.description.context_length)
    ends = [end.handle for report in reports for end in report.terminals.finished]
    assert sorted(ends) == list(range(1, 9))
    assert reports[-1].last_command == number
    assert reports[-1].progress.finished_steps > 0


async def test_reports_total_the_work_that_utilisation_is_computed_from(engine: EngineClient) -> None:
    request = fake_request(1, max_tokens=20, length=100)
    outputs = len(expected_output(request, engine.description.context_length))
    engine.submit(request)
    work = (await until_ended(engine, 1))[-1].progress.work
    decodes = range(101, 100 + outputs)  # each token that is fed in reads all before it, and itself
    assert work.steps >= outputs
    assert (work.outputs, work.tokens) >= (outputs, 100 + outputs - 1)
    assert sum(decodes) <= work.decode_reads <= sum(decodes) + 2 * (100 + outputs)  # a step ahead is wasted
    assert work.pairs == work.decode_reads + 100 * 100 / 2
    assert work.busy_s > 0.0
    assert work.host_to_device_bytes == 0.0  # it has no device


async def test_a_hearer_gets_quick_steps_as_tokens_alone(engine: EngineClient) -> None:
    heard: list[StepReport | TokenReport] = []
    over = asyncio.Event()

    def hear(report: StepReport | TokenReport) -> None:
        heard.append(report)
        if isinstance(report, StepReport) and report.terminals.finished:
            over.set()

    listening = asyncio.create_task(engine.listen(hear))
    request = fake_request(1, max_tokens=150, tenant=b"t" * 16)
    expected = expected_output(request, engine.description.context_length)
    engine.submit(request)
    await asyncio.wait_for(over.wait(), PATIENCE_S)
    await engine.close()
    await listening
    news = [each for report in heard for each in report.outputs]
    assert [each.token for each in news] == expected
    assert [each.output_index for each in news] == list(range(len(expected)))
    whole = [report for report in heard if isinstance(report, StepReport)]
    assert len(whole) < len(heard)
    served = [report.served[b"t" * 16] for report in whole if report.served]
    assert [sum(each) for each in zip(*served, strict=True)] == [100, len(expected)]
    assert max(each.progress.finished_steps for each in heard) == heard[-1].progress.finished_steps


async def test_commands_of_one_turn_travel_together(engine: EngineClient) -> None:
    for handle in range(1, 7):
        engine.submit(fake_request(handle, 1))
    numbers = {report.last_command for report in await until_ended(engine, *range(1, 7))}
    assert numbers <= {0, 6}


async def test_a_second_of_the_same_handle_is_rejected(engine: EngineClient) -> None:
    engine.submit(fake_request(1))
    engine.submit(fake_request(1))
    reports = await until_ended(engine, 1)
    rejected = [each for report in reports for each in report.terminals.rejected]
    assert [each.reason for each in rejected] == [RejectReason.DUPLICATE_HANDLE]


async def test_abort_ends_a_request_and_frees_its_blocks(engine: EngineClient) -> None:
    engine.submit(fake_request(1, 900, sampling=Sampling(ignore_eos=True)))
    engine.abort(1)
    engine.abort(2)  # nobody: ignored
    reports = await until_ended(engine, 1)
    (finished,) = reports[-1].terminals.finished
    assert finished.reason is FinishReason.CANCELLED
    async with asyncio.timeout(PATIENCE_S):
        async for report in engine.reports():
            load = report.load
            assert load.blocks_free + load.blocks_cached + load.blocks_held == load.blocks_total
            if load.blocks_held == 0:
                break


async def test_drain_returns_what_runs_and_rejects_what_comes(engine: EngineClient) -> None:
    engine.submit(fake_request(1, 900, sampling=Sampling(ignore_eos=True)))
    async with asyncio.timeout(PATIENCE_S):
        async for report in engine.reports():
            if len(report.outputs):
                break
    engine.drain()
    reports = [report, *await until_ended(engine, 1)]
    engine.submit(fake_request(2))
    reports += await until_ended(engine, 2)
    (returned,) = (each for report in reports for each in report.terminals.returned)
    assert returned.output_tokens == len(tokens_of(reports, 1)) > 0
    (rejected,) = (each for report in reports for each in report.terminals.rejected)
    assert rejected.reason is RejectReason.DRAINING


async def test_kv_events_have_no_gaps_and_a_snapshot_agrees(engine: EngineClient) -> None:
    for handle in (1, 2):
        engine.submit(fake_request(handle, 4, 200, kv_key=b"k" * 32))
    reports = await until_ended(engine, 1, 2)
    engine.request_kv_snapshot()
    async with asyncio.timeout(PATIENCE_S):
        async for report in engine.reports():
            reports.append(report)
            if report.kv_snapshot is not None:
                break
    numbers = [report.kv.first_number + i for report in reports for i in range(len(report.kv.digests))]
    assert numbers == list(range(1, len(numbers) + 1))
    stored = {digest for report in reports for digest in report.kv.digests}
    assert report.kv_snapshot is not None
    assert report.kv_snapshot.number == len(numbers) == 6
    assert set(report.kv_snapshot.digests) == stored


async def test_heartbeats_come_when_idle(engine: EngineClient) -> None:
    loop = asyncio.get_running_loop()
    times = []
    async with asyncio.timeout(PATIENCE_S):
        async for report in engine.reports():
            times.append(loop.time())
            assert not report.progress.has_work
            if len(times) == 5:
                break
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert sorted(gaps)[1] < 0.25


async def test_idle_time_does_not_look_like_a_step_that_hangs(engine: EngineClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async for _ in engine.reports():
            break
    idle_until_s = time.monotonic()
    engine.submit(fake_request(1))
    reports = await until_ended(engine, 1)
    working = [report.progress for report in reports if report.progress.has_work]
    assert working
    assert all(progress.last_finished_s >= idle_until_s for progress in working)


async def test_heartbeats_come_while_a_step_runs_and_show_that_it_does() -> None:
    engine = await EngineClient.start(SETTINGS, loader=engines.load_slow, in_process=True)
    engine.submit(fake_request(1, 2))
    reports = await until_ended(engine, 1)
    first_token = next(index for index, report in enumerate(reports) if len(report.outputs))
    during = [report for report in reports[:first_token] if report.progress.has_work]
    assert len(during) >= 3
    assert {report.progress.finished_steps for report in during} == {0}
    assert reports[-1].progress.step_s > 0.9
    await engine.close()


@pytest.mark.parametrize("in_process", [True, False])
async def test_a_runner_that_fails_is_reported_as_a_dead_engine(in_process: bool) -> None:
    engine = await EngineClient.start(SETTINGS, loader=engines.load_broken, in_process=in_process)
    engine.submit(fake_request(1))
    with pytest.raises(EngineDied, match="the device is on fire"):
        await until_ended(engine, 1)
    await engine.close()


async def test_a_process_that_vanishes_is_reported_as_a_dead_engine() -> None:
    engine = await EngineClient.start(SETTINGS, loader=engines.load_dying)
    engine.submit(fake_request(1))
    with pytest.raises(EngineDied, match="exit code 77"):
        await until_ended(engine, 1)
    await engine.close()


async def test_commands_after_the_engine_has_vanished_go_nowhere() -> None:
    engine = await EngineClient.start(SETTINGS, loader=engines.load_dying)
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    try:
        engine.submit(fake_request(1))
        with pytest.raises(EngineDied):
            await until_ended(engine, 1)
        engine.abort(1)
        await asyncio.sleep(0)  # the turn ends: commands are sent
        await engine.close()
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    assert failures == []


@pytest.mark.parametrize("in_process", [True, False])
async def test_errors_of_loading_keep_their_type_and_line(in_process: bool) -> None:
    with pytest.raises(ModelFormatError, match="there is no model"):
        await EngineClient.start(SETTINGS, loader=engines.load_nothing, in_process=in_process)
    with pytest.raises(EngineLoadError, match=r"ZeroDivisionError: division by zero$"):
        await EngineClient.start(SETTINGS, loader=engines.load_badly, in_process=in_process)


async def test_reports_end_after_close(engine: EngineClient) -> None:
    await engine.close()
    async with asyncio.timeout(PATIENCE_S):
        assert all([isinstance(report, StepReport) async for report in engine.reports()])
    await engine.close()


ORPHAN_MAKER = """
import asyncio, multiprocessing, sys
from pathlib import Path
from services.worker.engine.client import EngineClient
from services.worker.engine.settings import EngineSettings
from tests.support import engines
from tests.support.offline import prompt_of, request_of

async def main():
    loader = getattr(engines, sys.argv[1])
    engine = await EngineClient.start(EngineSettings(model=Path("/nowhere")), loader=loader)
    engine.submit(request_of(1, prompt_of(5, vocab=20)))
    async for report in engine.reports():
        if report.progress.has_work or report.outputs:
            break
    print(multiprocessing.active_children()[0].pid, flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("loader", ["load_fake", "load_hanging"])
async def test_an_engine_ends_when_its_parent_is_killed(
    tmp_path: Path, project_root: Path, loader: str
) -> None:
    """Also one that never looks at its pipe again, as when a step hangs."""
    script = tmp_path / "orphan_maker.py"
    script.write_text(ORPHAN_MAKER)
    environment = {**os.environ, "PYTHONPATH": str(project_root)}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, script, loader, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    child = int(await asyncio.wait_for(parent.stdout.readline(), PATIENCE_S))
    parent.kill()
    await parent.wait()
    await until_gone(child)


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while is_alive(pid):  # noqa: ASYNC110 - another process cannot tell us
            await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("limit", [{}, {"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"}])
async def test_the_torch_engine_serves_from_its_own_process(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, str]
) -> None:
    for name, value in limit.items():
        monkeypatch.setenv(name, value)
    settings = EngineSettings(model=tiny_llama, device="cpu", dtype="bfloat16", kv_blocks=64, threads=2)
    request = request_of(1, prompt_of(90), 12, sampling=Sampling(temperature=1.0, seed=7, ignore_eos=True))
    engine = await EngineClient.start(settings)
    assert engine.description.vocab_size == 512
    assert engine.description.eos_ids == (2,)
    engine.submit(request)
    tokens = tokens_of(await until_ended(engine, 1), 1)
    await engine.close()
    drive = offline(tiny_llama, dtype="bfloat16")
    drive.add(request)
    drive.run()
    assert tokens == drive.stories[1].tokens


LISTENER = """
import asyncio, sys
from pathlib import Path
from services.worker.engine.client import EngineClient
from services.worker.engine.settings import EngineSettings

async def main():
    settings = EngineSettings(model=Path(sys.argv[1]), device="cpu", kv_blocks=64, threads=1)
    engine = await EngineClient.start(settings)
    await engine.close()
    print(sorted({"torch", "numba", "llvmlite"} & set(sys.modules)))

asyncio.run(main())
"""


async def test_the_worker_needs_no_torch_to_hear_from_its_engine(tiny_llama: Path) -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LISTENER, str(tiny_llama), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(worker.communicate(), 2 * PATIENCE_S)
    assert output.decode().strip() == "[]"
