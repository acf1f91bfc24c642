"""What a worker on a real CPU promises, measured: interference, prediction, prefix hits.

    python -m bench.cpu_worker [--model DIR] [--streams 1 4 8] [--repeats 5] [--threads 2]

Inter-token latency of interactive streams beside a batch prompt of 4,096 tokens; error of the step model on
steps it has not seen, over mixed work; time to the first token after 2,048 tokens that are in KV memory. One
engine process with default settings serves all, cases take turns. Without a model: the 60M Llama of shapes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.drive import Engine, started
from bench.interference import UNITS, Interference, interfere
from bench.prediction import Errors
from bench.prefix_hit import PrefixHit, hit
from bench.results_contract import Row, record, row
from bench.shapes import write_model
from bench.workload import Job, Lengths, Work, online
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.request import LatencyClass

ITL_AIM, ERROR_AIM, HIT_AIM = 3.0, 0.10, 0.2
_PROMPT, _PREFIX = 4096, 2048
_IDLE_TOKENS = 150  # of each stream on either side of the batch prompt
_MIX = {LatencyClass.INTERACTIVE: 6.0, LatencyClass.STANDARD: 3.0, LatencyClass.BATCH: 1.0}


class Mixed(NamedTuple):
    """Loads that the step model is tried on."""

    rate: float
    seconds: float
    prompt: Lengths
    output: Lengths

    def jobs(self, vocab: int, seed: int) -> list[Job]:
        work = Work(self.prompt, self.output, vocab)
        return online(work, self.rate, self.seconds, seed, _MIX)


_MIXED = Mixed(rate=3.0, seconds=8.0, prompt=Lengths(16, 768), output=Lengths(8, 96))


class Prediction(NamedTuple):
    """Of one run over mixed work."""

    error: float  # %, mean over its steps
    steps: int


async def predict(engine: Engine, seed: int) -> Prediction:
    """The step model's mean error over one run, all of whose predictions were made before their steps."""
    errors = Errors()
    await engine.run(_MIXED.jobs(engine.description.vocab_size, seed), watch=errors.watch)
    return Prediction(100.0 * errors.mean, len(errors.values))


async def measure(given: argparse.Namespace, settings: EngineSettings) -> list[Row]:
    """All three, taking turns after a warm-up."""
    disturbed: dict[int, list[Interference]] = {streams: [] for streams in given.streams}
    predicted: list[Prediction] = []
    hits: list[PrefixHit] = []
    async with started(settings) as engine:
        await engine.run(_MIXED.jobs(engine.description.vocab_size, given.seed))
        for seed in range(given.seed + 1, given.seed + 1 + given.repeats):
            for streams, runs in disturbed.items():
                runs.append(await _interference(engine, streams, seed))
                print(f"seed {seed} {streams} streams: {runs[-1]}", flush=True)
            predicted.append(await predict(engine, seed))
            hits.append(await hit(engine, prefix_tokens=_PREFIX, seed=seed))
            print(f"seed {seed} {predicted[-1]} {hits[-1]}", flush=True)
    rows = [row for streams, runs in disturbed.items() for row in _interference_rows(streams, runs, settings)]
    return [*rows, *_prediction_rows(predicted), *_hit_rows(hits)]


async def _interference(engine: Engine, streams: int, seed: int) -> Interference:
    return await interfere(
        engine, streams=streams, prompt_tokens=_PROMPT, idle_tokens=_IDLE_TOKENS, seed=1000 * seed
    )


def _interference_rows(streams: int, runs: list[Interference], settings: EngineSettings) -> Iterator[Row]:
    target_s = settings.scheduler.targets[LatencyClass.INTERACTIVE].tpot_s or 0.0
    case = f"{streams} interactive streams, target {1e3 * target_s:g} ms, batch prompt of {_PROMPT}"
    for metric in Interference._fields:
        samples = [float(getattr(each, metric)) for each in runs]
        aimed = metric == "p99_beside_to_idle_p99"
        met = statistics.median(samples) <= ITL_AIM if aimed else None
        aim = f"<= {ITL_AIM:g}" if aimed else None
        yield row(case, metric, UNITS.get(metric, "ms"), samples, aim=aim, met=met)


def _prediction_rows(runs: list[Prediction]) -> Iterator[Row]:
    errors = [each.error for each in runs]
    case, met = "step model, mixed work, out of sample", statistics.median(errors) <= 100 * ERROR_AIM
    yield row(case, "mean error", "%", errors, aim=f"<= {100 * ERROR_AIM:g}", met=met)
    yield row(case, "steps", "a run", [float(each.steps) for each in runs])


def _hit_rows(runs: list[PrefixHit]) -> Iterator[Row]:
    case, ratios = f"prefix of {_PREFIX} tokens in KV memory", [each.hit_to_cold for each in runs]
    yield row(case, "TTFT cold", "ms", [each.cold_ms for each in runs])
    yield row(case, "TTFT hit", "ms", [each.hit_ms for each in runs])
    met = statistics.median(ratios) <= HIT_AIM
    yield row(case, "TTFT hit / cold", "×", ratios, aim=f"<= {HIT_AIM:g}", met=met)


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description="What a worker on a real CPU promises, measured.")
    options.add_argument("--model", type=Path, help="unset: the 60M Llama with random weights")
    options.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options.add_argument("--threads", type=int)
    options.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--name", default="cpu-worker", help="of the file in bench/results")
    return options


def main() -> None:
    """Run all, print the table, write the result."""
    given = _options().parse_args()
    with tempfile.TemporaryDirectory() as directory:
        settings = EngineSettings(
            model=given.model or write_model(Path(directory) / "llama-60m"),
            device="cpu",
            dtype=given.dtype,
            threads=given.threads,
        )
        record(given.name, asyncio.run(measure(given, settings)), packages=["torch", "numpy"])


if __name__ == "__main__":
    main()
