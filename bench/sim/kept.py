"""Runs that are kept, so that a comparison of hours can be stopped, or its part that changed played alone.

A run is found again only while all code that it goes through is the same: a published policy never meets the
router's policy, so its runs outlive changes there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from hashlib import blake2b
from pathlib import Path

from bench.sim.contenders import Contender
from bench.sim.experiments import Options
from bench.sim.outcome import Outcome
from bench.sim.play import Played, Task

ROOT = Path(__file__).parents[2]
SIMULATOR = """
device early experiments fairness fleet frame kernel leap loads outcome play prefixes request suites worker
"""
EVERYBODY = (
    "bench/sim/published",
    "services/worker/scheduler",
    "services/worker/session/books.py",
    "services/worker/session/credits.py",
    "services/worker/engine/simulated/calibration.py",
    "services/common/kv_chain.py",
    "services/router/policy/classify.py",
    *(f"bench/sim/{name}.py" for name in SIMULATOR.split()),
)
OURS_TOO = ("services/router/policy", "bench/sim/router.py", "bench/sim/account.py")


class Kept:
    """A folder of runs."""

    def __init__(self, folder: Path, suite: str, options: Options) -> None:
        self._folder = folder
        self._facts = f"{suite}\0{options.size}\0{_content(options.azure)}\0{_content(options.mooncake)}"
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, task: Task, contender: Contender) -> Played | None:
        """The run, if it was played before."""
        path = self._path(task, contender)
        if not path.exists():
            return None
        told = json.loads(path.read_text())
        parts = {name: Outcome(**figures) for name, figures in told["parts"].items()}
        return Played(task, parts, told["figures"], told["cpu_s"])

    def keep(self, played: Played, contender: Contender) -> None:
        """Writes it down."""
        told = {
            "task": asdict(played.task),
            "parts": {name: asdict(part) for name, part in played.parts.items()},
            "figures": played.figures,
            "cpu_s": played.cpu_s,
        }
        path = self._path(played.task, contender)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(told))
        unfinished.rename(path)

    def _path(self, task: Task, contender: Contender) -> Path:
        code = _code(contender.make is None)
        facts = (
            f"{self._facts}\0{task.experiment}\0{task.contender}\0{contender.variant}\0{task.seed}\0{code}"
        )
        return self._folder / f"{blake2b(facts.encode(), digest_size=12).hexdigest()}.json"


@cache
def _code(ours: bool) -> str:
    """Digest of all that such a run goes through."""
    digest = blake2b(digest_size=16)
    for path in _files(EVERYBODY + (OURS_TOO if ours else ())):
        digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@cache
def _content(path: Path) -> str:
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _files(names: tuple[str, ...]) -> Iterator[Path]:
    for name in names:
        path = ROOT / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else (path,)
