"""Part `peers`: continuous batching of transformers and ours, the same shapes and prompts in the same call.

    python -m bench.gpu peers

32 sequences of an 8B Llama whose contexts are about 8k tokens. What is compared is decoding, from when all
have their first token until the first has its last; the rate from the first prompt to the last token stands
beside. transformers chooses for itself: attention, CUDA graphs, asynchronous batches.
"""

from __future__ import annotations

import importlib
import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from bench.gpu.build import build
from bench.gpu.ceilings import Ceilings, measure_ceilings
from bench.gpu.drive import Engine, Track, prompt_of
from bench.gpu.engine import ROOFLINE
from bench.gpu.gaps import Window
from bench.gpu.loads import prefill
from bench.gpu.models import CONFIGS
from bench.gpu.place import OutOfTime, Place
from bench.gpu.rooflines import Roofline
from bench.gpu.timing import Timer
from bench.results_contract import Row, row
from services.worker.scheduler.request import Ids, Request

RATIO_AIM = 3.0
_RUNS = 3
_SILENCE_S = 180.0  # theirs come when they end
_OURS_S = 150  # that ours needs afterwards
_NO_EOS = -1


@dataclass(frozen=True, kw_only=True)
class Load:
    """Sequences of one length."""

    model: str
    batch: int
    prompt: int
    outputs: int

    @property
    def name(self) -> str:
        return f"{self.model} bf16, {self.batch} × {self.prompt} in and {self.outputs} out"

    @property
    def context(self) -> int:
        """Of the mean decode."""
        return self.prompt + self.outputs // 2

    def prompts(self, vocab: int, run: int) -> list[Ids]:
        """The same for both; other ones in each run, so that none finds its prefix."""
        return [prompt_of(self.prompt, vocab, 1000 * run + index) for index in range(self.batch)]


class Ran(NamedTuple):
    """One run."""

    decode: float  # tokens a second while all decode
    whole: float  # output tokens a second from the first prompt to the last token

    @classmethod
    def of(cls, tracks: list[Track], began_s: float) -> Ran:
        ended_s = max(track.token_s[-1] for track in tracks)
        outputs = sum(len(track.token_s) for track in tracks)
        return cls(Window.of_decoding(tracks).rate(tracks), outputs / (ended_s - began_s))


LOAD = Load(model="Llama-3.1-8B", batch=32, prompt=7936, outputs=512)
DRY_LOAD = Load(model="tiny Llama", batch=2, prompt=24, outputs=12)


def measure(place: Place) -> Iterator[Row]:
    """Theirs, then ours: both would not fit beside each other with all the memory that each takes."""
    load = DRY_LOAD if place.dry else LOAD
    ceilings, rows = measure_ceilings(place, Timer(place))
    yield from rows
    theirs, name = _tried(place, load)
    place.release()
    ours = _ours(place, load)
    yield from _our_rows(load, ceilings, ours)
    if theirs:
        yield from _compared(load, ours, theirs, name)


def _tried(place: Place, load: Load) -> tuple[list[Ran], str]:
    """Theirs; where they fail, ours is measured all the same."""
    try:
        return _theirs(place, load)
    except Exception as error:  # others' code
        print(f"transformers: {type(error).__name__}: {error}", flush=True)
        return [], "transformers"


def _our_rows(load: Load, ceilings: Ceilings, ours: list[Ran]) -> Iterator[Row]:
    roofline = Roofline.of(CONFIGS[load.model], ceilings, "none").decode_rate(load.batch, load.context)
    rates = [each.decode for each in ours]
    yield row(load.name, "ours, decode", "tok/s", rates, peer=ROOFLINE, peer_samples=[roofline])


def _compared(load: Load, ours: list[Ran], theirs: list[Ran], name: str) -> Iterator[Row]:
    case = load.name
    yield row(case, f"{name}, decode", "tok/s", [each.decode for each in theirs])
    for metric, aim in (("decode", RATIO_AIM), ("whole", None)):
        mine, other = ([getattr(each, metric) for each in runs] for runs in (ours, theirs))
        ratios = [a / b for a, b in zip(mine, other, strict=False)]
        met = None if aim is None else statistics.median(ratios) >= aim
        said = None if aim is None else f">= {aim:g} × peer"
        yield row(
            case, f"ours / theirs, {metric}", "×", ratios, aim=said, met=met, peer=name, peer_samples=[1.0]
        )
    yield row(
        case, "ours, from prompts on", "tok/s", [each.whole for each in ours],
        peer=name, peer_samples=[each.whole for each in theirs],
    )  # fmt: skip


def _ours(place: Place, load: Load) -> list[Ran]:
    built = build(place, CONFIGS[load.model], max_seqs=load.batch)
    try:
        engine = Engine(built.runner, built.vocab, place.ends_s)
        prefill(engine, place.size(2048, 16), 2, seed=5)
        engine.improve(place.size(20, 1))
        return [_our_run(engine, load, run) for run in range(_RUNS)]
    finally:
        built.runner.close()


def _our_run(engine: Engine, load: Load, run: int) -> Ran:
    prompts = load.prompts(engine.vocab, run)
    began_s = time.perf_counter()
    tracks = [engine.submit(prompt, load.outputs) for prompt in prompts]
    engine.finish(tracks)
    return Ran.of(tracks, began_s)


def _theirs(place: Place, load: Load) -> tuple[list[Ran], str]:
    """Their runs, and who they are."""
    transformers = importlib.import_module("transformers")
    logging.getLogger("transformers").setLevel(logging.WARNING)
    config = CONFIGS[load.model]
    vocab, model = config["vocab_size"], _their_model(place, transformers, config)
    generation = transformers.GenerationConfig(
        max_new_tokens=load.outputs, do_sample=False, eos_token_id=_NO_EOS, pad_token_id=0
    )
    batching = transformers.ContinuousBatchingConfig(
        allow_block_sharing=False,
        max_requests_per_batch=load.batch,
        **({"num_blocks": 64, "page_size": 32, "max_batch_tokens": 64} if place.dry else {}),
    )
    runs: list[Ran] = []
    with model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=batching
    ) as manager:
        _their_run(manager, load, load.prompts(vocab, 900)[:2])
        for run in range(_RUNS):
            began_s = time.monotonic()
            runs.append(_their_run(manager, load, load.prompts(vocab, run)))
            took_s = time.monotonic() - began_s
            print(f"    transformers: {runs[-1]} in {took_s:.1f} s", flush=True)
            try:
                place.need(took_s + place.size(_OURS_S, 0))
            except OutOfTime as error:
                print(f"transformers: {len(runs)} runs, {error}", flush=True)
                break
    attention = model.config._attn_implementation
    return runs, f"transformers {transformers.__version__}, {attention}"


def _their_model(place: Place, transformers: Any, config: dict[str, Any]) -> Any:
    with torch.device(place.device):
        made = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config),
            dtype=torch.float32 if place.dry else torch.bfloat16,
            attn_implementation="sdpa",
        )
    return made.eval()


def _their_run(manager: Any, load: Load, prompts: list[Ids]) -> Ran:
    began_s = time.perf_counter()
    for prompt in prompts:
        manager.add_request(
            prompt.tolist(), max_new_tokens=load.outputs, record_timestamps=True, eos_token_id=_NO_EOS
        )
    tracks: list[Track] = []
    heard_s = time.monotonic()
    while len(tracks) < len(prompts):
        output = manager.get_result(timeout=1.0)
        if output is None:
            _fail_with_theirs(manager)
            time.sleep(0.01)  # it may have returned at once
            if time.monotonic() - heard_s > _SILENCE_S:
                raise TimeoutError(f"transformers: nothing came for {_SILENCE_S:g} s")
            continue
        heard_s = time.monotonic()
        if output.error:
            raise RuntimeError(f"transformers: {output.error}")
        if output.is_finished():
            tracks.append(_track(len(tracks), prompts[0], output))
    return Ran.of(tracks, began_s)


def _fail_with_theirs(manager: Any) -> None:
    """Their thread may have died: then no result ever comes."""
    fatal = getattr(getattr(manager, "background_thread_status", None), "fatal_error", None)
    if fatal is not None:
        raise RuntimeError(f"transformers: {fatal}")


def _track(handle: int, prompt: Ids, output: Any) -> Track:
    request = Request(handle=handle, prompt=prompt, max_tokens=len(output.generated_tokens), arrival_s=0.0)
    return Track(handle, request, list(output.generated_tokens), list(output.timestamps))
