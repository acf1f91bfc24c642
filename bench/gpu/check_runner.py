"""Checks of the runner: against the CPU's on the same weights, alone and among neighbours, for long.

Production's scheduler drives both. In fp32 ids are equal; in bf16 the part that agrees is told, because
rounding may choose another, equally valid token where two are nearly the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import torch

from bench.gpu.build import build, products_of
from bench.gpu.check_kernels import Check
from bench.gpu.compare import CheckFailed, agreement, error_of, expect_close, expect_equal
from bench.gpu.drive import Engine, Track, prompt_of
from bench.gpu.models import CONFIGS, RandomWeights
from bench.gpu.place import Place
from bench.gpu.sampling import WAYS
from services.worker.engine.errors import EngineLoadError
from services.worker.engine.torch.config import parse_config
from services.worker.engine.torch.linear import PlainLinear
from services.worker.engine.torch.model import Llama
from services.worker.engine.torch.plain import PlainOperators
from services.worker.engine.torch.rope import Rope
from services.worker.engine.torch.runner import TorchRunner
from services.worker.scheduler.request import Sampling
from services.worker.scheduler.step import Capabilities, KVSpec

TINY = ("tiny Llama", "tiny Qwen3")
_AGREEMENT = 0.25  # of ids in bf16 with the CPU's fp32 ones: random weights hold many near ties
_LOGPROB_ERROR = 2e-3
_EIGHT_BITS = {"fp8": 0.06, "int8": 0.03}  # relative errors of a product of random numbers
_STEADY_STEPS = 60


class Runners:
    """Checks, and what they found."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._tokens = place.size(48, 10)  # of an output
        self._requests = place.size(24, 6)

    def checks(self) -> Iterator[Check]:
        """By name; each raises CheckFailed, or says what it came to."""
        for name in TINY:
            yield f"{name}, fp32, ids of the CPU runner", partial(self._same, name)
            yield f"{name}, bf16, agreement", partial(self._agrees, name, "none")
        yield "run-ahead with aborts, submissions and reused slots", self._aborts
        yield "deterministic ids among neighbours", self._deterministic
        for quantization in ("fp8", "int8"):
            yield f"{quantization} products", partial(self._product, quantization)
            yield f"{quantization} engine", partial(self._eight_bits, quantization)
        yield "memory in steady decode", self._memory

    @lru_cache  # noqa: B019  # one object a run
    def _wanted(self, name: str) -> list[Track]:
        return self._run(self._on_cpu(CONFIGS[name]), "all")

    def _run(self, engine: Engine, ways: str) -> list[Track]:
        tracks = self._submit(engine, ways)
        engine.finish(tracks)
        return tracks

    def _submit(self, engine: Engine, ways: str) -> list[Track]:
        """Prompts of many lengths, chosen in all ways, or greedily."""
        chosen = list(WAYS.values()) if ways == "all" else [Sampling()]
        lengths = [1, 7, 63, 64, 65, 200, *(random.Random(1).choices(range(2, 400), k=64))]
        return [
            engine.submit(
                prompt_of(lengths[index], engine.vocab, index),
                self._tokens,
                sampling=_sampling(chosen[index % len(chosen)], index),
            )
            for index in range(self._requests)
        ]

    def _engine(self, name: str, dtype: torch.dtype, **options: Any) -> Engine:
        """On the card, with the weights that `_on_cpu` has."""
        weights = RandomWeights(self._place.device, dtype, drawn_as=torch.float32, made_on="cpu")
        built = build(self._place, CONFIGS[name], dtype=dtype, weights=weights, max_seqs=16, **options)
        return Engine(built.runner, built.vocab)

    def _on_cpu(self, config: dict[str, Any]) -> Engine:
        parsed, dtype, cpu = parse_config(config), torch.float32, torch.device("cpu")
        spec = KVSpec(block_size=64, num_blocks=256, max_seqs=16, max_len=parsed.context)
        with torch.inference_mode():
            operators = PlainOperators(parsed, Rope(parsed, spec.max_len, dtype, cpu), spec.block_size)
            model = Llama(parsed, RandomWeights(cpu, dtype), operators, _linear)
        runner = TorchRunner(model, parsed, spec, Capabilities(), dtype=dtype, device=cpu)
        return Engine(runner, parsed.vocab_size)

    def _same(self, name: str) -> str:
        engine, wanted = self._engine(name, torch.float32), self._wanted(name)
        found = self._run(engine, "all")
        for index, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
            expect_equal(f"ids of request {index}", mine.ids, theirs.ids)
        said = expect_close("log-probabilities", _logprobs(found), _logprobs(wanted), _LOGPROB_ERROR)
        self._close(engine)
        return f"{sum(len(track.ids) for track in found)} ids equal, log-probabilities within {said}"

    def _agrees(self, name: str, quantization: str) -> str:
        engine, wanted = self._engine(name, torch.bfloat16, quantization=quantization), self._wanted(name)
        found = self._run(engine, "all")
        part = agreement([track.ids for track in found], [track.ids for track in wanted])
        if quantization == "none" and part < _AGREEMENT:
            raise CheckFailed(f"{part:.1%} of the ids agree, at least {_AGREEMENT:.0%} were expected")
        self._close(engine)
        return f"{part:.1%} of the ids agree with fp32"

    def _aborts(self) -> str:
        """Whoever stays has the ids it has alone, whatever comes and goes around it."""
        alone = self._engine(TINY[0], torch.float32)
        wanted = [track.ids for track in self._run(alone, "all")]
        engine, chance, passing = self._engine(TINY[0], torch.float32), random.Random(7), list[Track]()
        staying = self._submit(engine, "all")
        while not all(track.done for track in staying):
            if chance.random() < 0.5 and len(passing) < 40 * self._requests:
                prompt = prompt_of(chance.randrange(1, 300), engine.vocab, 10_000 + len(passing))
                passing.append(engine.submit(prompt, chance.randrange(1, 40)))
            running = [track for track in passing if not track.done]
            if running and chance.random() < 0.4:
                engine.abort(chance.choice(running))
            engine.turn()
        for track in passing:
            if not track.done:
                engine.abort(track)
        engine.finish()
        expect_equal("ids beside aborted requests", [track.ids for track in staying], wanted)
        engine.scheduler.check()
        self._close(alone)
        self._close(engine)
        return f"{len(passing)} requests came and went, {sum(map(len, wanted))} ids equal"

    def _deterministic(self) -> str:
        try:
            engine = self._engine(TINY[0], torch.bfloat16, deterministic=True)
        except EngineLoadError as error:
            return f"not to be had here: {error}"
        together = self._run(engine, "all")
        for index, track in enumerate(together):
            again = engine.submit(track.request.prompt, self._tokens, sampling=track.request.sampling)
            engine.finish([again])
            expect_equal(f"ids of request {index} alone", again.ids, track.ids)
        self._close(engine)
        return f"{sum(len(track.ids) for track in together)} ids in bf16 equal alone and among neighbours"

    @torch.inference_mode()
    def _product(self, quantization: str) -> str:
        place = self._place
        try:
            products = products_of(place, quantization)
        except EngineLoadError as error:
            return f"not to be had here: {error}"
        said = []
        for tokens, columns, rows in ((1, 4096, 6144), (33, 4096, 1000), (300, 144, 4096)):
            columns, rows = place.size(columns, 144), place.size(rows, 96)
            weight = place.random(rows, columns, seed=tokens)
            x = place.random(tokens, columns, seed=tokens + 1)
            out = products.make_linear(weight)(x)
            apart = error_of(out, torch.nn.functional.linear(x.float(), weight.float()))
            if not apart <= _EIGHT_BITS[quantization]:
                raise CheckFailed(f"{quantization} {tokens}x{columns}x{rows}: error {apart:.3f}")
            said.append(f"{apart:.3f}")
        return f"errors {', '.join(said)}"

    def _eight_bits(self, quantization: str) -> str:
        """Random weights are no quality gate; that graphs run and everything ends is what counts."""
        try:
            return self._agrees(TINY[0], quantization)
        except EngineLoadError as error:
            return f"not to be had here: {error}"

    def _memory(self) -> str:
        """After all graphs are there, steps take nothing from the driver, nor from torch's own store."""
        engine = self._engine(TINY[0], torch.bfloat16)
        engine.improve(60.0)
        tracks = [engine.submit(prompt_of(40, engine.vocab, index), 400) for index in range(8)]
        engine.until(lambda: all(len(track.ids) > 8 for track in tracks))
        before, first = self._allocations(), len(engine.turns)
        engine.until(lambda: len(engine.turns) >= first + self._place.size(_STEADY_STEPS, 4))
        after = self._allocations()
        for track in tracks:
            engine.abort(track)
        engine.finish(tracks)
        for name, count in before.items():
            expect_equal(f"{name} after {_STEADY_STEPS} steps", after[name], count)
        engine.scheduler.check()
        self._close(engine)
        return ", ".join(f"{name} {count}" for name, count in after.items())

    def _allocations(self) -> dict[str, int]:
        if not self._place.on_card:
            return {"allocations": 0}
        said = torch.cuda.memory_stats(self._place.device)
        names = {"allocations": "allocation.all.allocated", "reserved": "reserved_bytes.all.current"}
        return {name: int(said[key]) for name, key in names.items()}

    def _close(self, engine: Engine) -> None:
        engine.runner.close()
        self._place.release()


def _logprobs(tracks: list[Track]) -> torch.Tensor:
    return torch.tensor([each for track in tracks for each in track.logprobs])


def _sampling(way: Sampling, index: int) -> Sampling:
    return Sampling(
        temperature=way.temperature,
        top_k=way.top_k,
        top_p=way.top_p,
        min_p=way.min_p,
        repetition_penalty=way.repetition_penalty,
        presence_penalty=way.presence_penalty,
        frequency_penalty=way.frequency_penalty,
        seed=(1 << 63) + index,
        ignore_eos=True,
        logprobs=3 if index % 3 == 0 else None,
    )


def _linear(weight: torch.Tensor, bias: torch.Tensor | None = None, *, wide: bool = False) -> PlainLinear:
    return PlainLinear(weight, bias)
