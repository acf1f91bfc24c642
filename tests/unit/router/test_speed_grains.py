"""Speeds that differ by what a fit cannot tell are equal; those of other hardware are not."""

from __future__ import annotations

import numpy as np
import pytest

from services.router.policy import Cost, WorkerView
from services.router.policy.fleet import Fleet
from services.router.policy.speed import MOST_FASTER, StepModel, alike, believed

H100 = (1e-3, 2.7e-5, 1.3e-9, 4.9e-8, 2e-5, 1.0)
L4 = (1e-3, 2.2e-4, 1.0e-8, 5.5e-7, 2e-5, 1.0)


def fitted(model: tuple[float, ...], by: float) -> list[float]:
    """The same device as another worker's fit has it."""
    return [*(each * by for each in model[:5]), model[5]]


@pytest.mark.parametrize("by", [0.92, 0.97, 1.0, 1.04, 1.09])
def test_fits_of_one_device_count_as_equally_fast(by: float) -> None:
    speeds = believed(np.array([list(H100), list(H100), fitted(H100, by)]).T)
    assert np.ptp(speeds.token_s) == 0.0
    assert np.ptp(speeds.attention_s) == 0.0
    assert np.ptp(speeds.slowness) == 0.0


def test_other_hardware_stays_as_slow_as_it_is() -> None:
    speeds = believed(np.array([list(H100), list(H100), list(L4)]).T)
    told = (L4[0] / 2048 + L4[1]) / (H100[0] / 2048 + H100[1])
    assert speeds.token_s[2] / speeds.token_s[0] == pytest.approx(told, rel=0.13)
    assert speeds.slowness[2] > 1.2


def test_a_model_without_attention_stays_without() -> None:
    flat = [1e-3, 2.7e-5, 0.0, 4.9e-8, 2e-5, 1.0]
    assert believed(np.array([flat, flat]).T).attention_s.tolist() == [0.0, 0.0]


def test_small_news_of_a_worker_changes_nothing() -> None:
    model = StepModel(*H100)
    assert alike(model, model._replace(b=model.b * 1.01))
    assert not alike(model, model._replace(b=model.b * 1.1))
    assert not alike(model, model._replace(d=model.d * 100))
    assert not alike(None, model)
    assert alike(None, None)


def test_nonsense_is_always_news() -> None:
    model = StepModel(*H100)
    assert not alike(model, model._replace(a=float("nan")))
    assert not alike(model._replace(a=float("nan")), model)


def test_a_slow_drift_is_followed() -> None:
    fleet = Fleet()
    for step in range(60):
        model = StepModel(*fitted(H100, 1.01**step))
        fleet.put(worker("a", model))
    assert fleet.model_of(fleet.index.positions["a"]).b == pytest.approx(H100[1] * 1.01**59, rel=0.03)


def worker(key: str, model: StepModel) -> WorkerView:
    return WorkerView(
        key=key,
        model="m",
        ready=True,
        credit=Cost(1000, 10, 100),
        sequences=0,
        waiting_tokens=0,
        max_sequences=10,
        max_tokens=1000,
        total_blocks=100,
        step_model=model,
    )


CPU = (2e-2, 2e-3, 1e-7, 1e-6, 1e-3, 1.0)


def decode_s(model: list[float], sequences: int) -> float:
    return StepModel(*model).decode_s(sequences, 1024.0 * sequences)


def test_a_gpu_that_joins_a_cpu_decodes_as_it_says_while_its_prompts_are_not_believed() -> None:
    speeds = believed(np.array([list(CPU), list(H100)]).T)
    cpu, gpu = speeds.models.T.tolist()
    assert cpu == list(CPU)
    assert speeds.token_s[1] == pytest.approx(speeds.token_s[0] / MOST_FASTER, rel=0.13)
    slower = decode_s(gpu, 1) / decode_s(list(H100), 1)
    assert 1.0 <= slower < 3.0, "the cap of decodes, not the far lower one of prompts"
    for sequences in (1, 16, 256):
        assert decode_s(gpu, sequences) == pytest.approx(slower * decode_s(list(H100), sequences))


def test_who_says_to_decode_in_no_time_is_not_believed_it() -> None:
    liar = [1e-9, 2.7e-5, 1.3e-9, 0.0, 0.0, 1.0]
    speeds = believed(np.array([list(H100), list(H100), liar]).T)
    assert decode_s(speeds.models[:, 2].tolist(), 1) == pytest.approx(decode_s(list(H100), 1) / MOST_FASTER)
