"""`bench/gpu.sh` without a GPU: every part runs dry, alone, with little installed, and tells failures."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import build, check, peers, reader, timing
from bench.gpu.ceilings import measure_ceilings
from bench.gpu.check_kernels import Kernels
from bench.gpu.check_runner import Runners
from bench.gpu.compare import CheckFailed, agreement, error_of, expect_close, expect_equal
from bench.gpu.drive import Engine, Track, prompt_of
from bench.gpu.gaps import Window
from bench.gpu.loads import Steady, interfere, offline
from bench.gpu.models import CONFIGS, RandomWeights
from bench.gpu.place import NoDevice, OutOfTime, Place
from bench.gpu.profiling import Span, of_spans
from bench.gpu.rooflines import Ceilings, Roofline
from bench.gpu.timing import Timer
from bench.null_runner import VOCAB, NullPending, NullRunner
from bench.results_contract import Result, read, row
from services.worker.engine.base import CountsCopies
from services.worker.engine.torch.config import parse_config
from services.worker.engine.torch.cuda import reference
from services.worker.scheduler.step import Capabilities, KVSpec, Step
from tests.support.engines import SPEC
from tests.support.fake_device import FakeDevice
from tests.support.fake_runner import FakeRunner

ABSENT = (
    "pydantic", "structlog", "grpc", "numba", "llguidance", "typer", "prometheus_client", "redis", "rich",
)  # fmt: skip
BARE = f"""
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"{{name}} is not on this host", name=name)

sys.meta_path.insert(0, Absent())
"""


Done = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dry(project_root: Path, results: Path, part: str, *, bare: bool = True) -> Done:
    """A part as `bench/gpu.sh` starts it, on a host that has torch and little else."""
    script = (BARE if bare else "import sys\n") + "from bench.gpu.__main__ import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, part, "--dry", "--results", str(results)],
        cwd=project_root,
        env={**os.environ, "HEADRACE_COMMIT": "abc1234"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def result_of(done: Done, results: Path, part: str) -> Result:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return read(results / f"gpu-{part}.json")


def test_check_passes_with_the_kernels_own_references(project_root: Path, tmp_path: Path) -> None:
    done = dry(project_root, tmp_path, "check")
    result = result_of(done, tmp_path, "check")
    assert not result.missed
    assert len(result.rows) > 40
    assert f"{len(result.rows)} checks, 0 failed" in done.stdout


def test_kernels_stand_beside_their_ceilings_and_alternatives(project_root: Path, tmp_path: Path) -> None:
    result = result_of(dry(project_root, tmp_path, "kernels"), tmp_path, "kernels")
    cases = {row.case for row in result.rows}
    for kind in (
        "decode attention",
        "prefill attention",
        "sampling",
        "log-prob",
        "product",
        "add_norm",
        "rotate",
    ):
        assert any(case.startswith(kind) for case in cases), kind
    assert any("SDPA" in case for case in cases)
    assert {row.peer for row in result.rows if row.metric == "rate"} <= {"read ceiling", "product ceiling"}


def test_engine_figures_have_roofline_aim_and_profile(project_root: Path, tmp_path: Path) -> None:
    result = result_of(dry(project_root, tmp_path, "engine"), tmp_path, "engine")
    decodes = [row for row in result.rows if row.metric == "output"]
    assert decodes
    assert all(row.peer_value is not None for row in decodes)
    assert {row.metric for row in result.missed} >= {"output"}  # one aim of the dry plan cannot be met
    assert any("profile" in row.case for row in result.rows)
    metrics = {row.metric for row in result.rows}
    assert {"host", "ITL p99 beside / idle", "prompt tokens", "from page cache to device"} <= metrics


def test_peers_run_the_same_prompts_in_the_same_call(project_root: Path, tmp_path: Path) -> None:
    result = result_of(dry(project_root, tmp_path, "peers", bare=False), tmp_path, "peers")
    ratio = next(row for row in result.rows if row.metric == "ours / theirs, decode")
    assert ratio.repeats == 3
    assert ratio.peer is not None
    assert ratio.peer.startswith("transformers 5.")


def test_the_script_runs_from_any_directory_and_asks_where_dry_figures_go(
    project_root: Path, tmp_path: Path
) -> None:
    script = [str(project_root / "bench" / "gpu.sh"), "check", "--dry"]
    done = subprocess.run(
        ["bash", *script], cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--results" in done.stderr


def test_a_python_without_torch_is_told_in_one_line(project_root: Path, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    done = subprocess.run(
        ["bash", str(project_root / "bench" / "gpu.sh"), "--help"], env={**os.environ, "PYTHON": str(bare)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{bare} has no torch" in done.stderr


def test_without_a_gpu_only_a_dry_run_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NoDevice, match="--dry"):
        Place.make(dry=False, minutes=1)


def test_without_a_gpu_the_command_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "check"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "bench.gpu: there is no CUDA device; --dry runs everything on the CPU, with tiny sizes\n"
    )


def test_nothing_of_the_gpu_path_needs_what_a_gpu_host_lacks(project_root: Path) -> None:
    """Not even what a dry run does not reach: Triton's kernels, the card's own device, weights of files."""
    script = (
        BARE
        + """
import importlib, pkgutil
for folder in ("bench/gpu", "services/worker/engine/torch/cuda", "services/worker/scheduler"):
    for module in pkgutil.walk_packages([folder], folder.replace("/", ".") + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            print(module.name.rpartition(".")[2])
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project_root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"reader", "kernels", "paged", "products", "device", "runner", "peers"} <= set(done.stdout.split())


def broken(**functions: Any) -> Any:
    """The references, some of them wrong."""
    return SimpleNamespace(**{**vars(reference), **functions})


def forgets_the_last_token(query: Any, pool: Any, rows: Any, *others: Any, **more: Any) -> None:
    reference.attend(
        query, pool, rows._replace(contexts=rows.contexts - (rows.contexts > 60).int()), *others, **more
    )


def leaves_a_row_unwritten(merged: torch.Tensor, out: torch.Tensor) -> None:
    reference.gate(merged[:-1], out[:-1])


def always_the_second(logits: torch.Tensor, *others: Any, **more: Any) -> None:
    reference.sample(logits.roll(1, -1), *others, **more)


@pytest.mark.parametrize(
    ("functions", "failing"),
    [
        ({"attend": forgets_the_last_token}, "attention"),
        ({"gate": leaves_a_row_unwritten}, "gate"),
        ({"sample": always_the_second}, "sampling"),
    ],
    ids=["attend", "gate", "sample"],
)
def test_a_wrong_kernel_is_found_and_named(functions: dict[str, Any], failing: str) -> None:
    place = Place.make(dry=True, minutes=1)
    checks = {
        name: work
        for name, work in Kernels(place, broken(**functions)).checks(seed=1)
        if failing in name or name.startswith(("gate", "grammar", "log"))
    }
    outcomes = {name: check._run(work) for name, work in checks.items()}
    failed = {name for name, (_, passed) in outcomes.items() if not passed}
    assert failed
    assert all(failing in name or name == "grammar masks" for name in failed)
    assert len(failed) < len(outcomes)  # what is right passes beside it


def test_a_crash_of_one_check_is_its_failure_alone() -> None:
    def crash() -> str:
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    assert check._run(crash) == ("RuntimeError: CUDA error: an illegal memory access", False)


def test_errors_are_relative_and_nan_never_passes() -> None:
    wanted = torch.tensor([3.0, 4.0])
    assert error_of(torch.tensor([3.0, 4.5]), wanted) == pytest.approx(0.1)
    for poison in (torch.nan, torch.inf):
        with pytest.raises(CheckFailed, match="inf"):
            expect_close("it", torch.tensor([3.0, poison]), wanted)
    with pytest.raises(CheckFailed, match=r"ids: \[1\], expected \[2\]"):
        expect_equal("ids", [1], [2])
    assert agreement([[1, 2, 3, 4], [5]], [[1, 2, 9, 4], [5]]) == pytest.approx(3 / 5)


def test_busy_time_counts_streams_side_by_side_once() -> None:
    found = of_spans([Span("a", 0, 10), Span("copy", 5, 8), Span("b", 20, 30), Span("a", 30, 40)])
    assert found is not None
    assert found.busy == pytest.approx(30 / 40)
    assert list(found.by_name) == ["a", "b", "copy"]
    assert found.by_name["a"] == pytest.approx(20 / 33)
    assert of_spans([]) is None


def test_rooflines_are_those_of_the_study() -> None:
    """8B at 4.3 TB/s and 788 TFLOP/s: 285 tok/s alone, 11.8k at 64, 20.2k at 256, 52k of prompts."""
    found = Roofline.of(CONFIGS["Llama-3.1-8B"], Ceilings(4.3e12, 4.3e12, 788e12, None), "none")
    assert found.decode_rate(1, 512) == pytest.approx(285, rel=0.03)
    assert found.decode_rate(64, 1024) == pytest.approx(11_800, rel=0.03)
    assert found.decode_rate(256, 1024) == pytest.approx(20_200, rel=0.03)
    assert found.prefill_rate(2048) == pytest.approx(52_000, rel=0.08)


@pytest.mark.parametrize(
    ("name", "billions"), [("Qwen3-0.6B", 0.6), ("Llama-3.1-8B", 8.0), ("Qwen3-32B", 32.8)]
)
def test_shapes_are_those_of_the_models_they_are_named_after(name: str, billions: float) -> None:
    config = parse_config(CONFIGS[name])
    attention = config.hidden * (config.qkv_rows + config.heads * config.head_dim)
    layer = attention + 3 * config.hidden * config.ffn
    parameters = config.layers * layer + (1 if config.tied else 2) * config.vocab_size * config.hidden
    assert parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_random_weights_depend_on_name_and_shape_alone() -> None:
    cpu = torch.device("cpu")
    weights = RandomWeights(cpu, torch.float32)
    merged = weights.merge({"a.weight": 3, "b.weight": 2}, 8)
    assert torch.equal(merged[3:], weights.take("b.weight", 2, 8))
    rounded = RandomWeights(cpu, torch.bfloat16, drawn_as=torch.float32).take("b.weight", 2, 8)
    assert torch.equal(rounded, merged[3:].bfloat16())


def test_a_window_counts_what_all_do_at_once() -> None:
    tracks = [track(1.0, 2.0, 3.0, 4.0), track(2.5, 3.5, 4.5)]
    window = Window.of_decoding(tracks)
    assert (window.begins_s, window.ends_s) == (2.5, 4.0)
    assert window.rate(tracks) == pytest.approx(3 / 1.5)
    assert window.gaps_s(tracks) == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="longer outputs"):
        Window.of_decoding([track(1.0, 2.0), track(3.0, 4.0)])


def track(*token_s: float) -> Track:
    return Track(1, None, list(range(len(token_s))), list(token_s))  # type: ignore[arg-type]


def test_the_driver_settles_one_step_behind_and_ends_every_request() -> None:

    engine = Engine(FakeRunner(SPEC, Capabilities(run_ahead=1)), 50)
    tracks = [engine.submit(prompt_of(70, 50, seed), 20) for seed in range(5)]
    engine.until(lambda: len(tracks[0].ids) > 2)
    assert engine.runner.steps[-1].number == len(engine.turns) + 1  # type: ignore[attr-defined]
    engine.abort(tracks[1])
    engine.finish(tracks)
    assert all(len(each.ids) == 20 for each in tracks if each is not tracks[1])
    engine.scheduler.check()


def test_where_theirs_fails_ours_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(place: Place, load: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(peers, "_theirs", fails)
    rows = list(peers.measure(Place.make(dry=True, minutes=2)))
    assert [each.metric for each in rows if each.case != "ceilings"] == ["ours, decode"]


def test_loads_of_a_cards_size_reach_what_they_are_named_after() -> None:
    """256 sequences decode at 1k, whatever their prompts did; with a runner that computes nothing."""
    spec = KVSpec(block_size=64, num_blocks=13_000, max_seqs=256, max_len=131_072)
    engine = Engine(NullRunner(spec, None), VOCAB)
    with Steady(engine, 256, 896) as steady:
        found = steady.measure(2, 16)
        assert {turn.rows for turn in engine.turns[-32:]} == {256}
        assert {turn.tokens for turn in engine.turns[-32:]} == {256}
    assert 896 < found.context < 1200
    assert offline(engine, 100, 50, 300, seed=5) > 0
    assert engine.scheduler.load().running == 0
    engine.scheduler.check()


class SlowRunner(NullRunner):
    """Decodes take longer than interactive ones may for a batch prompt to be let in beside them."""

    def launch(self, step: Step) -> NullPending:
        time.sleep(0.03)
        return super().launch(step)


def test_a_batch_prompt_that_is_not_let_in_is_not_waited_for() -> None:
    engine = Engine(SlowRunner(SPEC, None), VOCAB)
    found = interfere(engine, 2, 600, 12, seed=1, patience_s=0.3)
    assert found.prompt_rate == 0.0
    assert found.beside_p99_ms > 0.0
    engine.scheduler.check()
    assert not engine.scheduler.has_work


def test_an_engine_that_is_too_slow_for_its_time_is_left() -> None:
    engine = Engine(FakeRunner(SPEC, Capabilities(run_ahead=1)), 50, ends_s=time.monotonic() - 1)
    with pytest.raises(OutOfTime, match="still run"):
        engine.finish([engine.submit(prompt_of(70, 50, 1), 20)])


def test_a_part_that_has_no_time_left_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measured(part: str, place: Place) -> Iterator[Any]:
        yield row("first", "rate", "tok/s", [1.0])
        place.need(1e9)

    monkeypatch.setattr(command, "_rows", measured)
    assert len(command.run("engine", Place.make(dry=True, minutes=1), tmp_path)) == 1
    assert json.loads((tmp_path / "gpu-engine.json").read_text())["rows"][0]["case"] == "first"


class FakeEvent:
    """Of a card that takes a millisecond between any two marks."""

    marks = 0

    def __init__(self, **options: bool) -> None:
        self.at = 0

    def record(self, stream: object = None) -> None:
        FakeEvent.marks += 1
        self.at = FakeEvent.marks

    def elapsed_time(self, end: FakeEvent) -> float:
        return float(end.at - self.at)


class FakeGraph:
    """Runs what was captured again."""

    captures: ClassVar[list[FakeGraph]] = []

    def replay(self) -> None:
        FakeGraph.captures.append(self)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place that believes to be on a card, with tiny sizes; Triton's kernels are interpreted."""
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(timing, "_TIMED_S", 0.0)
    monkeypatch.setattr(timing, "_WARM_S", 0.0)
    return Place(device=torch.device("cpu"), dry=True, on_card=True, ends_s=time.monotonic() + 600)


def test_times_on_a_card_are_those_of_events_around_replays(card: Place) -> None:
    FakeGraph.captures.clear()
    assert Timer(card).seconds(lambda: None) == [0.001] * 5
    assert len(FakeGraph.captures) == 5
    assert Timer(card).median_s(lambda: None, graph=False) == 0.001
    assert len(FakeGraph.captures) == 5


def test_the_reading_kernel_reads_everything_once(card: Place) -> None:
    source = card.random(300_000, dtype=torch.float32)
    out = torch.full((reader.programs(source),), torch.nan)
    reader.read(source, out)
    assert float(out.sum()) == pytest.approx(float(source.sum()), rel=1e-3)
    ceilings, rows = measure_ceilings(card, Timer(card))
    assert ceilings.read > 0
    assert len(rows) >= 3


COMPILE = """
import torch, triton
from tests.support.compiled_kernels import HOPPER, record, source, stack
launches = record()
from bench.gpu import reader
numbers = torch.zeros(1 << 20)
reader.read(numbers, torch.empty(reader.programs(numbers)))
made = triton.compile(source(launches[0]), target=HOPPER, options=launches[0].options)
print(made.asm["ptx"].count("ld.global.v4"), stack(made.asm["cubin"]))
"""


def test_the_reading_kernel_compiles_for_hopper_to_wide_loads(project_root: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=project_root,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wide_loads, spilled = map(int, done.stdout.split())
    assert wide_loads >= 8  # of 16 bytes, in flight at once in each thread
    assert spilled == 0


def test_checks_fit_tritons_kernels_as_they_are(card: Place) -> None:
    """By the interpreter, and few of them: the kernels have tests of their own."""
    wanted = ("add_norm, float32", "gate, bfloat16", "place, 4/4", "sampling, top-k", "grammar", "log-prob")
    checks = [
        (name, work)
        for name, work in Kernels(card, card.kernels()).checks(seed=3)
        if name.startswith(wanted) and "bfloat16" not in name.replace("gate, bfloat16", "")
    ]
    assert len(checks) == len(wanted)
    assert [
        (name, said) for name, (said, passed) in ((n, check._run(w)) for n, w in checks) if not passed
    ] == []


def test_memory_of_a_card_is_counted_by_its_allocator(card: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = {"allocation.all.allocated": 5, "reserved_bytes.all.current": 1 << 20}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats)
    assert Runners(card)._allocations() == {"allocations": 5, "reserved": 1 << 20}


def test_an_engine_on_a_card_has_what_production_chooses(
    card: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, asked = FakeDevice(), list[Any]()

    def chosen(config: Any, context: int, dtype: Any, where: Any, wanted: Any) -> Any:
        asked.append((context, dtype, where, wanted.quantization))
        return build.dry_parts(device, wanted)

    monkeypatch.setattr(build, "device_of", lambda place: device)
    monkeypatch.setattr(build, "choose_cuda_parts", chosen)
    built = build.build(card, CONFIGS["tiny Llama"], dtype=torch.float32, quantization="fp8")
    engine = Engine(built.runner, built.vocab)
    track = engine.submit(prompt_of(20, built.vocab, 1), 3)
    engine.finish([track])
    assert len(track.ids) == 3
    assert built.ready_s > 0
    assert isinstance(built.runner, CountsCopies)  # what telemetry tells of it
    assert built.runner.host_to_device_bytes > 0
    assert asked == [(2048, torch.float32, card.device, "fp8")]
