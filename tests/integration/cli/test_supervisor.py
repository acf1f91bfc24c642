"""The supervisor over small real processes: start, restart, drain, and who dies with whom."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.cli.errors import CliError
from services.cli.up.child import ChildSpec
from services.cli.up.supervisor import Supervisor
from tests.support.children import alive, noted, spec
from tests.support.waiting import eventually


@asynccontextmanager
async def supervising(directory: Path, said: list[str], *specs: ChildSpec) -> AsyncIterator[Supervisor]:
    """Starts the children; kills them in the end."""
    supervisor = Supervisor(specs, directory, said.append)
    forced = asyncio.Event()
    try:
        await supervisor.start()
        yield supervisor
    finally:
        forced.set()
        await supervisor.drain(forced)
        assert not any(alive(child.pid) for child in supervisor.children)


async def test_children_end_stage_by_stage(tmp_path: Path) -> None:
    names = ("store", "router", "worker-0", "worker-1")
    stages = {"router": 0, "worker-0": 1, "worker-1": 1, "store": 2}
    specs = [spec(tmp_path, name, stage=stages[name]) for name in names]
    async with supervising(tmp_path, [], *specs) as supervisor:
        assert sorted(noted(tmp_path, "started")) == sorted(names)
        await supervisor.drain(asyncio.Event())
        ended = noted(tmp_path, "ended")
    assert ended[0] == "router"
    assert set(ended[1:3]) == {"worker-0", "worker-1"}
    assert ended[3:] == ["store"]


async def test_what_dies_is_started_again_and_its_last_words_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    async with supervising(tmp_path, said, spec(tmp_path, "worker-0")) as supervisor:
        first = supervisor.children[0].pid
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: any("is back" in line for line in said), "the worker is back")
        assert supervisor.children[0].pid != first
        assert alive(supervisor.children[0].pid)
    assert said[:2] == [
        f"worker-0 (pid {first}) killed by SIGKILL; starting again in 0.5 s",
        "  worker-0 was here",
    ]


async def test_a_child_that_cannot_start_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(CliError) as caught:
        async with supervising(tmp_path, [], spec(tmp_path, "good"), spec(tmp_path, "bad", "broken")):
            pass
    assert str(caught.value) == (
        f"bad cannot start: ended with code 1; no model of that name (log: {tmp_path}/bad.log)"
    )


async def test_a_child_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    slow = ChildSpec(
        name="slow", command=("sleep", "600"), environment={"PATH": os.environ["PATH"]}, ready=never,
        start_timeout_s=0.2,
    )  # fmt: skip
    with pytest.raises(CliError, match=r"slow cannot start: not ready after 0\.2 s"):
        async with supervising(tmp_path, [], slow):
            pass


async def test_what_a_dead_child_leaves_behind_is_ended(tmp_path: Path) -> None:
    said: list[str] = []
    async with supervising(tmp_path, said, spec(tmp_path, "worker", "parent")) as supervisor:
        child = supervisor.children[0]
        left = int(child.last_words(1)[0].split()[1])
        assert alive(left)
        os.kill(child.pid, signal.SIGKILL)
        await eventually(lambda: not alive(left), "its child is ended")


async def test_a_child_that_does_not_obey_is_killed_at_its_bound(tmp_path: Path) -> None:
    said: list[str] = []
    stubborn = spec(tmp_path, "deaf", "stubborn", stop_timeout_s=0.2)
    async with supervising(tmp_path, said, stubborn) as supervisor:
        await supervisor.drain(asyncio.Event())
        assert not alive(supervisor.children[0].pid)
    assert said == ["deaf took longer than 0.2 s and was killed"]


async def test_forcing_does_not_wait(tmp_path: Path) -> None:
    async with supervising(
        tmp_path, [], spec(tmp_path, "deaf", "stubborn", stop_timeout_s=600)
    ) as supervisor:
        forced = asyncio.Event()
        drain = asyncio.create_task(supervisor.drain(forced))
        forced.set()
        await asyncio.wait_for(drain, 30)
        assert not alive(supervisor.children[0].pid)


async def test_the_log_of_the_last_run_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("the last run")
    async with supervising(tmp_path, [], spec(tmp_path, "a")):
        pass
    assert (tmp_path / "a.log.1").read_text() == "the last run"
    assert (tmp_path / "a.log").read_text() == "a was here\n"


PARENT = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from services.cli.up.supervisor import Supervisor
    from tests.support.children import spec

    async def main(directory):
        supervisor = Supervisor([spec(directory, "child")], directory, print)
        await supervisor.start()
        print(supervisor.children[0].pid, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main(Path(sys.argv[1])))
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
async def test_children_die_with_a_parent_that_is_killed(tmp_path: Path, project_root: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path), stdout=asyncio.subprocess.PIPE, cwd=project_root
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    assert alive(child)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not alive(child), "the child is ended")
    assert noted(tmp_path, "ended") == ["child"]
