"""The simulated engine: the same answers whatever happens around them, calibrated time, faults as asked."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.virtual import VirtualWorker
from services.worker.engine.base import LoadedEngine
from services.worker.engine.errors import EngineLoadError
from services.worker.engine.settings import EngineSettings
from services.worker.engine.simulated.calibration import Calibration, StepTime, read_calibration
from services.worker.engine.simulated.clock import RealClock, VirtualClock
from services.worker.engine.simulated.faults import Faults, Saboteur
from services.worker.engine.simulated.load import load_simulated_engine
from services.worker.scheduler.intake import ModelFacts
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import FinishReason, LatencyClass, Request, Sampling
from services.worker.scheduler.scheduler import Scheduler
from services.worker.scheduler.step import StepCost

ROOT = Path(__file__).parent.parent.parent.parent
H100 = ROOT / "bench" / "calibration" / "h100-8b.toml"
NOWHERE = ROOT / "none"
ENDLESS = Sampling(ignore_eos=True)


def load(**chosen: Any) -> tuple[LoadedEngine, VirtualClock]:
    clock = VirtualClock()
    given = EngineSettings(**{"model": NOWHERE, "simulated_calibration": H100} | chosen)
    return load_simulated_engine(given, clock), clock


def worker(policy: SchedulerSettings | None = None, run_ahead: int = 0, **chosen: Any) -> VirtualWorker:
    engine, clock = load(**chosen)
    facts = ModelFacts(engine.description.vocab_size, engine.description.eos_ids, bytes(32))
    scheduler = Scheduler(
        engine.runner.spec, policy or SchedulerSettings(), facts, engine.runner.capabilities
    )
    return VirtualWorker(scheduler, engine.runner, clock, run_ahead)


def request(handle: int, length: int = 20, max_tokens: int = 40, **fields: Any) -> Request:
    prompt = np.random.default_rng(handle).integers(0, 1000, length).astype(np.int32)
    fields = {"sampling": ENDLESS, "arrival_s": 0.0} | fields
    return Request(handle=handle, prompt=prompt, max_tokens=max_tokens, **fields)


def answer(asked: Request, **chosen: Any) -> list[int]:
    """What the request is answered when it is alone."""
    alone = worker(**chosen)
    alone.submit([asked])
    list(alone.run())
    return alone.stories[asked.handle].token_ids


def test_answers_do_not_depend_on_neighbours() -> None:
    crowd = worker()
    wanted = [request(handle, length=5 + 7 * handle) for handle in range(64)]
    crowd.submit(wanted)
    list(crowd.run())
    assert all(crowd.stories[each.handle].token_ids == answer(each) for each in wanted[::9])


@settings(max_examples=30, deadline=None)
@given(at=st.integers(0, 39), temperature=st.sampled_from([0.0, 0.8]), seed=st.integers(0, 2**64 - 1))
def test_a_resumed_answer_goes_on_exactly(at: int, temperature: float, seed: int) -> None:
    sampling = Sampling(temperature=temperature, seed=seed, ignore_eos=True)
    whole = answer(request(3, sampling=sampling))
    delivered = np.array(whole[:at], np.int32)
    assert answer(request(3, sampling=sampling, delivered=delivered)) == whole[at:]


def test_answers_survive_preemption() -> None:
    crowded = worker(kv_blocks=24, max_seqs=8)
    batch = [request(n, 500, 80, latency_class=LatencyClass.BATCH) for n in range(3)]
    chat = [
        request(10 + n, 400, 60, latency_class=LatencyClass.INTERACTIVE, arrival_s=0.1 + 0.2 * n)
        for n in range(6)
    ]
    crowded.submit([*batch, *chat])
    ends = list(crowded.run())
    assert sum(end.usage.preemptions for end in ends) > 0
    assert all(crowded.stories[each.handle].token_ids == answer(each) for each in [*batch, *chat])


def test_a_greedy_answer_knows_no_seed_and_a_sampled_one_does() -> None:
    def of(temperature: float, seed: int) -> list[int]:
        return answer(request(1, sampling=Sampling(temperature=temperature, seed=seed, ignore_eos=True)))

    assert of(0.0, 1) == of(0.0, 2)
    assert of(1.0, 1) == of(1.0, 1) != of(1.0, 2)


def test_another_engine_seed_is_another_model() -> None:
    one, other = load(simulated_seed=1)[0].description, load(simulated_seed=2)[0].description
    assert one.numerics_id != other.numerics_id
    assert one.weights_digest != other.weights_digest
    assert answer(request(1), simulated_seed=1) != answer(request(1), simulated_seed=2)


def test_answers_end_by_themselves_about_as_long_as_set() -> None:
    engine, _ = load(simulated_answer_tokens=100)
    crowd = worker(simulated_answer_tokens=100, run_ahead=1)
    crowd.submit(request(handle, max_tokens=5000, sampling=Sampling()) for handle in range(200))
    ends = list(crowd.run())
    assert {end.reason for end in ends} == {FinishReason.EOS}
    lengths = [end.usage.output_tokens for end in ends]
    assert 70 < float(np.median(lengths)) < 140
    for story in crowd.stories.values():
        assert [token in engine.description.eos_ids for token in story.token_ids].index(True) == (
            len(story.token_ids) - 1
        )


def test_no_stop_id_comes_before_min_tokens() -> None:
    free = answer(request(1))
    sampling = Sampling(stop_token_ids=(free[2], free[30]), min_tokens=20)
    stopped = answer(request(1, sampling=sampling), simulated_answer_tokens=1)
    assert len(stopped) >= 20
    assert free[2] not in stopped[:20]
    assert stopped[:2] == free[:2]


def test_log_probabilities_come_where_they_were_asked_for() -> None:
    engine, clock = load()
    facts = ModelFacts(engine.description.vocab_size, engine.description.eos_ids, bytes(32))
    scheduler = Scheduler(engine.runner.spec, SchedulerSettings(), facts, engine.runner.capabilities)
    scheduler.add(request(1, sampling=Sampling(logprobs=3)), 0.0)
    scheduler.add(request(2), 0.0)
    step = scheduler.plan(0.0)
    assert step is not None
    scheduler.commit(step, engine.runner.launch(step).result(), clock.now(), 0.01)
    news = {each.handle: each for each in scheduler.take_events().outputs}
    assert news[2].logprobs is None
    given = news[1].logprobs
    assert given is not None
    assert given.top_ids[0] == news[1].token
    assert len(set(given.top_ids)) == 3
    assert given.chosen == given.top[0] > given.top[1] > given.top[2]


def test_virtual_time_is_that_of_the_calibration_and_runs_the_same_twice() -> None:
    def story() -> tuple[float, int]:
        run = worker(simulated_noise=0.1, simulated_seed=5)
        run.submit(request(handle, length=300, arrival_s=0.3 * handle) for handle in range(20))
        list(run.run())
        return run.now_s, run.steps

    assert story() == story()
    alone = worker()
    alone.submit([request(1, length=300, max_tokens=11)])
    list(alone.run())
    step = read_calibration(H100).step
    prompt = step.of(StepCost(1.0, 300.0, 300.0 * 150.0, 0.0, 0.0))
    decodes = sum(step.of(StepCost(1.0, 1.0, 0.0, float(context), 1.0)) for context in range(301, 311))
    assert alone.now_s == pytest.approx(prompt + decodes)


def test_reading_weights_hides_under_the_arithmetic_of_many_tokens() -> None:
    step = StepTime(step_s=0.001, token_s=0.0001, weights_s=0.005)
    assert step.of(StepCost(1.0, 10.0, 0.0, 0.0, 0.0)) == pytest.approx(0.006)
    assert step.of(StepCost(1.0, 100.0, 0.0, 0.0, 0.0)) == pytest.approx(0.011)


def test_real_time_does_not_return_early() -> None:
    clock = RealClock()
    until_s = clock.now() + 0.01
    clock.sleep_until(until_s)
    assert time.monotonic() >= until_s


def test_faults_strike_at_their_token_once() -> None:
    struck: list[str] = []
    saboteur = Saboteur(
        Faults(die_at_token=5, hang_at_token=3), lambda: struck.append("die"), lambda: struck.append("hang")
    )
    saboteur.before_result(2)
    assert struck == []
    saboteur.before_result(2)
    assert struck == ["hang"]
    saboteur.before_result(1)
    saboteur.before_result(9)
    assert struck == ["hang", "die"]


def test_steps_are_slower_after_so_many() -> None:
    def seconds(**faults: Any) -> float:
        run = worker(**faults)
        run.submit([request(1, max_tokens=20)])
        list(run.run())
        return run.now_s

    assert seconds(simulated_slow_after_steps=20, simulated_slow_factor=3.0) == pytest.approx(seconds())
    assert seconds(simulated_slow_after_steps=0, simulated_slow_factor=3.0) == pytest.approx(3 * seconds())


def write_model(directory: Path) -> Path:
    directory.mkdir()
    config = {"vocab_size": 100, "max_position_embeddings": 512, "eos_token_id": 9}
    (directory / "config.json").write_text(json.dumps(config))
    vocabulary = {f"t{number}": number for number in range(20)}
    special = [{"id": 19, "content": "t19"}]
    (directory / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": vocabulary}, "added_tokens": special})
    )
    return directory


def test_words_are_the_tokenizers_and_neither_special_nor_an_end(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    engine, _ = load(model=model, simulated_calibration=None)
    assert engine.description.vocab_size == 100
    assert engine.description.context_length == 512
    assert engine.description.eos_ids == (9,)
    short = Request(
        handle=1, prompt=np.arange(4, dtype=np.int32), max_tokens=400, arrival_s=0.0, sampling=ENDLESS
    )
    said = answer(short, model=model, simulated_calibration=None)
    assert len(said) == 400
    assert set(said) == set(range(19)) - {9}


def test_without_a_model_there_must_be_a_calibration() -> None:
    with pytest.raises(EngineLoadError, match=r"config\.json"):
        load(simulated_calibration=None)
    assert load()[0].description.vocab_size == read_calibration(H100).vocab_size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[step]\nstep_s = -1.0", "step.step_s is -1.0; allowed is a number, not negative"),
        ("kv_tokens = 1.5", "kv_tokens is 1.5; allowed is an integer, not negative"),
        ("speed = 1", "speed is unknown; known are device"),
        ("device = ", "cannot read simulated_calibration"),
    ],
)
def test_a_wrong_calibration_is_refused_with_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(EngineLoadError, match=said.replace(".", r"\.")) as refusal:
        read_calibration(path)
    assert "\n" not in str(refusal.value)


def test_an_empty_calibration_is_a_forward_pass_that_takes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")
    assert read_calibration(path) == Calibration()
    assert read_calibration(path).step.of(StepCost(1.0, 1e6, 1e9, 1e6, 1e3)) == 0.0


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    code = (
        "import sys; from pathlib import Path; from services.worker.engine.load import load_engine; "
        "from services.worker.engine.client import EngineClient; "
        "from services.worker.engine.settings import EngineSettings; "
        f"load_engine(EngineSettings(model=Path({str(model)!r}), engine='simulated')); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_steps_cost_is_known_before_the_first_one() -> None:
    engine, clock = load(simulated_die_at_token=1)
    learned, step_time = engine.prior, read_calibration(H100).step
    assert clock.now() == 0.0
    for cost in (StepCost(1, 1024, 1024 * 512, 0, 0), StepCost(1, 16, 0, 16 * 64, 16)):
        predicted = sum(each * part for each, part in zip(learned.coefficients, cost, strict=True))
        assert predicted == pytest.approx(step_time.of(cost), rel=0.35)
