"""Part `engine`: production's scheduler and runner with random weights, figures beside roofline and aim.

python -m bench.gpu engine [--models Llama-3.1-8B …]
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.gpu.build import Built, build
from bench.gpu.ceilings import measure_ceilings
from bench.gpu.drive import Engine
from bench.gpu.loads import Steady, interfere, offline, prefill
from bench.gpu.models import CONFIGS
from bench.gpu.place import OutOfTime, Place
from bench.gpu.profiling import profiled
from bench.gpu.reading import reading_rows
from bench.gpu.rooflines import Roofline
from bench.gpu.timing import Timer
from bench.results_contract import Row, row

READY_AIM_S, BUSY_AIM, HOST_AIM_MS, ITL_AIM = 5.0, 98.0, 1.5, 3.0
ROOFLINE = "roofline at the measured ceilings"
_WINDOWS, _STEPS = 3, 64
_PROFILED_STEPS = 24


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured of one model."""

    model: str
    quantization: str = "none"
    decodes: dict[int, float | None] = field(default_factory=dict)  # batch -> aim, tokens a second
    context: int = 1024
    prefill_aim: float | None = None
    offline_aim: float | None = None
    offline_requests: int = 0
    profiled: tuple[int, ...] = ()  # batches
    restarts: bool = False
    reads: bool = False  # weights from a file
    interference: bool = False
    needs_s: float = 60.0

    @property
    def name(self) -> str:
        numbers = "bf16" if self.quantization == "none" else self.quantization
        return f"{self.model} {numbers}"


PLANS = (
    Plan(
        model="Llama-3.1-8B",
        decodes={1: 230.0, 64: 9000.0, 256: 15_500.0},
        prefill_aim=40_000.0,
        offline_aim=11_000.0,
        offline_requests=512,
        profiled=(1, 64, 256),
        interference=True,
        restarts=True,
        needs_s=30.0,
    ),
    Plan(
        model="Llama-3.1-8B",
        quantization="fp8",
        decodes={1: None, 64: None, 256: None},
        offline_aim=17_800.0,
        offline_requests=512,
        profiled=(64,),
        needs_s=30.0,
    ),
    Plan(
        model="Qwen3-0.6B",
        decodes={1: None, 64: None, 256: None},
        profiled=(1, 64),
        reads=True,
        needs_s=30.0,
    ),
    Plan(model="Qwen3-32B", decodes={1: None, 64: None}, needs_s=60.0),
)
DRY_PLANS = (
    Plan(
        model="tiny Llama",
        decodes={1: 1.0, 3: 1e12},
        context=96,
        prefill_aim=1.0,
        offline_aim=1.0,
        offline_requests=3,
        profiled=(1,),
        interference=True,
        restarts=True,
        needs_s=0.0,
    ),
    Plan(model="tiny Qwen3", quantization="fp8", decodes={2: None}, context=96, reads=True, needs_s=0.0),
)


def measure(place: Place, models: list[str] | None = None) -> Iterator[Row]:
    """All plans, as long as there is time; what there was no time for is said and left out."""
    timer = Timer(place)
    ceilings, rows = measure_ceilings(place, timer)
    yield from rows
    for plan in DRY_PLANS if place.dry else PLANS:
        if models and plan.model not in models:
            continue
        try:
            place.need(plan.needs_s)
            yield from _of_plan(place, plan, Roofline.of(CONFIGS[plan.model], ceilings, plan.quantization))
        except OutOfTime as error:
            print(f"{plan.name}: left out, {error}", flush=True)
        finally:
            place.release()


def _of_plan(place: Place, plan: Plan, roofline: Roofline) -> Iterator[Row]:
    if plan.reads:  # before an engine takes all memory
        yield from reading_rows(place, plan.model, CONFIGS[plan.model])
        place.release()
    built = build(place, CONFIGS[plan.model], quantization=plan.quantization)
    yield from _start_rows(plan, built)
    if plan.restarts:
        built.runner.close()
        del built
        place.release()
        built = build(place, CONFIGS[plan.model], quantization=plan.quantization)
        yield _ready_row(plan, built)
    try:
        engine = Engine(built.runner, built.vocab, place.ends_s)
        prefill(engine, place.size(2048, 64), 2, seed=1)  # compiles, and the step model learns
        engine.improve(min(20.0, place.left_s / 4))
        for batch, aim in plan.decodes.items():
            place.need(plan.needs_s / 4)
            yield from _decode_rows(place, plan, engine, roofline, batch, aim)
        if plan.prefill_aim is not None:
            yield _prefill_row(place, plan, engine, roofline)
        if plan.interference:
            yield from _interference_rows(place, plan, engine)
        if plan.offline_requests:
            place.need(3 * plan.needs_s)
            yield _offline_row(place, plan, engine, roofline)
    finally:
        built.runner.close()


def _start_rows(plan: Plan, built: Built) -> Iterator[Row]:
    yield row(plan.name, "weights made", "s", [built.weights_s])
    yield row(plan.name, "from weights to serving, kernels not yet compiled", "s", [built.ready_s])


def _ready_row(plan: Plan, built: Built) -> Row:
    met = built.ready_s <= READY_AIM_S
    metric = "from weights to serving, kernels compiled before"
    return row(plan.name, metric, "s", [built.ready_s], aim=f"<= {READY_AIM_S:g}", met=met)


def _decode_rows(
    place: Place, plan: Plan, engine: Engine, roofline: Roofline, batch: int, aim: float | None
) -> Iterator[Row]:
    case = f"{plan.name}, {batch} sequences decode at context {plan.context}"
    prompt = plan.context - place.size(2 * _STEPS, 8)  # the mean over all windows is about the context
    with Steady(engine, batch, prompt) as steady:
        found = steady.measure(_WINDOWS, place.size(_STEPS, 4))
        yield _rate_row(case, "output", found.rates, aim, roofline.decode_rate(batch, found.context))
        yield _host_row(case, batch, found.host_ms)
        if batch in plan.profiled:
            profile = profiled(place, lambda: steady.turns(place.size(_PROFILED_STEPS, 2)))
            if profile is not None:
                busy = 100 * profile.busy
                first, *rest = profile.rows(case)
                yield row(
                    case,
                    first.metric,
                    "%",
                    [busy],
                    aim=f">= {BUSY_AIM:g} in steady decode",
                    met=busy >= BUSY_AIM,
                )
                yield from rest


def _host_row(case: str, batch: int, host_ms: list[float]) -> Row:
    if batch < 256:
        return row(case, "host", "ms/step", host_ms)
    met = statistics.median(host_ms) <= HOST_AIM_MS
    return row(case, "host", "ms/step", host_ms, aim=f"<= {HOST_AIM_MS:g}", met=met)


def _prefill_row(place: Place, plan: Plan, engine: Engine, roofline: Roofline) -> Row:
    prompt, count = place.size(2048, 64), place.size(24, 2)
    rates = [prefill(engine, prompt, count, seed=10_000 * index) for index in range(1, 4)]
    case = f"{plan.name}, prompts of {prompt}"
    return _rate_row(case, "prompt tokens", rates, plan.prefill_aim, roofline.prefill_rate(prompt))


def _offline_row(place: Place, plan: Plan, engine: Engine, roofline: Roofline) -> Row:
    prompt, outputs = place.size(1000, 32), place.size(1000, 8)
    rate = offline(engine, prompt, outputs, plan.offline_requests, seed=99_000)
    batch = min(plan.offline_requests, engine.runner.spec.max_seqs)
    case = f"{plan.name}, offline, {plan.offline_requests} requests of {prompt} in and {outputs} out"
    return _rate_row(case, "output", [rate], plan.offline_aim, roofline.offline_rate(prompt, outputs, batch))


def _interference_rows(place: Place, plan: Plan, engine: Engine) -> Iterator[Row]:
    prompt = min(place.size(32_768, 256), engine.runner.spec.max_len - 64)
    runs = [
        interfere(
            engine, place.size(8, 2), prompt, place.size(200, 4), 7000 * index, patience_s=place.size(30, 2)
        )
        for index in (1, 2, 3)
    ]
    case = f"{plan.name}, 8 interactive streams beside a batch prompt of {prompt}"
    computed = all(each.prompt_rate for each in runs)
    yield row(case, "ITL p99 idle", "ms", [each.idle_p99_ms for each in runs])
    yield row(case, "ITL p99 beside", "ms", [each.beside_p99_ms for each in runs])
    yield row(case, "prompt tokens", "tok/s", [each.prompt_rate for each in runs])
    ratios = [each.ratio for each in runs]
    met = computed and statistics.median(ratios) <= ITL_AIM
    yield row(case, "ITL p99 beside / idle", "×", ratios, aim=f"<= {ITL_AIM:g}, prompt computed", met=met)


def _rate_row(case: str, metric: str, rates: list[float], aim: float | None, roofline: float) -> Row:
    rates_met = None if aim is None else statistics.median(rates) >= aim
    return row(
        case,
        metric,
        "tok/s",
        rates,
        aim=None if aim is None else f">= {aim:g}",
        met=rates_met,
        peer=ROOFLINE,
        peer_samples=[roofline],
    )
