"""What a worker on a real CPU promises, measured: interference, prediction, prefix hits.

    python -m bench.cpu_worker [--model DIR] [--streams 1:40 4:80] [--repeats 5] [--threads 2]

Inter-token latency of interactive streams beside a batch prompt of 4,096 tokens; error of the step model on
steps it has not seen, over mixed work; time to the first token after 2,048 tokens that are in KV memory. One
engine process with default settings serves all, cases take turns. Without a model: the 60M Llama of shapes.

`--streams 4:80`: four streams whose target is 80 ms a token. A deployment chooses targets its machine can
hold: batch prompts wait while decodes alone take more than 0.3 of the target (SchedulerSettings.gate).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

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


class Streams(NamedTuple):
    """Interactive streams and their target."""

    number: int
    target_ms: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """`4:80`. Raises ValueError."""
        count, _, target_ms = text.partition(":")
        return cls(int(count), float(target_ms))

    async def run(self, engine: Engine, seed: int) -> Interference:
        """Beside a batch prompt."""
        return await interfere(
            engine,
            streams=self.number,
            prompt_tokens=_PROMPT,
            idle_tokens=_IDLE_TOKENS,
            seed=1000 * seed,
            tpot_target_s=1e-3 * self.target_ms,
        )


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
    disturbed: dict[Streams, list[Interference]] = {streams: [] for streams in given.streams}
    predicted: list[Prediction] = []
    hits: list[PrefixHit] = []
    async with started(settings) as engine:
        await engine.run(_MIXED.jobs(engine.description.vocab_size, given.seed))
        for seed in range(given.seed + 1, given.seed + 1 + given.repeats):
            for streams, runs in disturbed.items():
                runs.append(await streams.run(engine, seed))
                print(f"seed {seed} {streams}: {runs[-1]}", flush=True)
            predicted.append(await predict(engine, seed))
            hits.append(await hit(engine, prefix_tokens=_PREFIX, seed=seed))
            print(f"seed {seed} {predicted[-1]} {hits[-1]}", flush=True)
    rows = [row for streams, runs in disturbed.items() for row in _interference_rows(streams, runs)]
    return [*rows, *_prediction_rows(predicted), *_hit_rows(hits)]


def _interference_rows(streams: Streams, runs: list[Interference]) -> Iterator[Row]:
    case = f"{streams.number} interactive streams, target {streams.target_ms:g} ms, batch prompt of {_PROMPT}"
    for metric in Interference._fields:
        samples = [float(getattr(each, metric)) for each in runs]
        if metric == "p99_beside_to_idle_p99":
            met = statistics.median(samples) <= ITL_AIM and all(each.prompt_rate for each in runs)
            yield row(case, metric, "×", samples, aim=f"<= {ITL_AIM:g}, prompt computed", met=met)
        else:
            yield row(case, metric, UNITS.get(metric, "ms"), samples)


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
    options.add_argument("--streams", type=Streams.parse, nargs="+", default=[Streams(1, 40), Streams(4, 80)])
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
