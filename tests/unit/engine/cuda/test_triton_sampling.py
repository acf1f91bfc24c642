"""Sampling's kernels, by Triton's interpreter, against plain torch; and that against the CPU's sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from services.worker.engine.torch.cuda import kernels, reference
from services.worker.engine.torch.cuda.arguments import GrammarMasks, LogprobsOut, SamplingState
from services.worker.engine.torch.sampler import Sampler
from services.worker.scheduler.request import Sampling
from services.worker.scheduler.step import NOT_FINITE, Masks, SlotInit
from tests.support.kernel_cases import GUARD, SamplingCase, garbage, sampling_case

PART = 4096  # tokens of the vocabulary a program takes


def sample(
    case: SamplingCase, *, draws: bool = True, filters: bool = True
) -> tuple[torch.Tensor, SamplingState]:
    """Ids and the state after, by the kernels; neither logits nor what lies beyond is touched."""
    rows, vocab = case.logits.shape
    state, before = SamplingState(*(part.clone() for part in case.state)), case.logits.clone()
    needed = kernels.sampling_workspace(rows, vocab)
    workspace, ids = garbage(needed + GUARD), garbage(rows + GUARD, dtype=torch.int32)
    kernels.sample(
        case.logits, case.slots, case.indices, case.masks, state, ids[:rows], workspace[:needed],
        draws=draws, filters=filters,
    )  # fmt: skip
    assert torch.equal(case.logits.view(torch.int32), before.view(torch.int32))
    assert workspace[needed:].isnan().all()
    assert (ids[rows:] == -77).all()
    return ids[:rows], state


def expected(case: SamplingCase) -> tuple[torch.Tensor, SamplingState]:
    state = SamplingState(*(part.clone() for part in case.state))
    ids = garbage(len(case.logits), dtype=torch.int32)
    reference.sample(case.logits, case.slots, case.indices, case.masks, state, ids, garbage(0))
    return ids, state


def assert_same(case: SamplingCase, *, draws: bool = True, filters: bool = True) -> None:
    (ids, state), (wanted, after) = sample(case, draws=draws, filters=filters), expected(case)
    assert ids.tolist() == wanted.tolist()
    assert torch.equal(state.history, after.history)
    assert torch.equal(state.last_token, after.last_token)


@pytest.mark.parametrize("seed", range(8))
def test_ids_are_those_of_the_reference_whatever_is_asked(seed: int) -> None:
    assert_same(sampling_case(seed))


@pytest.mark.parametrize("vocab", [5, PART, PART + 1])
def test_parts_of_a_vocabulary_are_put_together(vocab: int) -> None:
    assert_same(sampling_case(vocab, vocab=vocab))


def test_a_flat_distribution_keeps_every_token_in_the_search() -> None:
    case = sampling_case(3, rows=4, vocab=900)
    state = case.state._replace(
        temperature=torch.ones(4),
        top_k=torch.tensor([0, 700, 0, 0], dtype=torch.int32),
        top_p=torch.tensor([0.95, 1.0, 0.5, 0.999999], dtype=torch.float64),
    )
    assert_same(case._replace(logits=case.logits * 1e-3, state=state))


def test_equal_scores_are_in_or_out_together() -> None:
    case = sampling_case(0, rows=3, vocab=64)
    state = case.state._replace(temperature=torch.ones(3), top_k=torch.tensor([1, 2, 3], dtype=torch.int32))
    logits = torch.zeros(3, 64)
    logits[:, 10:13] = 1.0  # three best ones: each may be drawn
    drawn = set()
    for index in range(5):
        indices = torch.full((3,), index, dtype=torch.int32)
        each = case._replace(logits=logits, state=state, indices=indices, masks=None)
        assert_same(each)
        drawn |= set(sample(each)[0].tolist())
    assert len(drawn & {10, 11, 12}) > 1


def test_rows_that_are_not_finite_are_told_from_others() -> None:
    case = sampling_case(1, rows=5)
    case.logits[0, 3], case.logits[1, 700], case.logits[2, 5] = math.nan, math.inf, -math.inf
    case.logits[3] = -math.inf
    case = case._replace(masks=None, state=case.state._replace(min_tokens=torch.zeros(5, dtype=torch.int32)))
    ids, state = sample(case)
    assert (ids == NOT_FINITE).tolist() == [True, True, False, True, False]
    assert (state.last_token[case.slots.long()] >= 0).all()
    assert ids[[2, 4]].tolist() == expected(case)[0][[2, 4]].tolist()


@pytest.mark.parametrize(("draws", "filters"), [(False, True), (True, False)])
def test_launches_that_the_host_knows_to_be_idle_are_left_out(draws: bool, filters: bool) -> None:
    case = sampling_case(5)
    state = case.state
    if not draws:
        state = state._replace(temperature=torch.zeros_like(state.temperature))
    if not filters:
        state = state._replace(top_k=torch.zeros_like(state.top_k), top_p=torch.ones_like(state.top_p))
    assert_same(case._replace(state=state), draws=draws, filters=filters)


def test_a_count_stops_at_its_largest_value() -> None:
    case = sampling_case(2, rows=2, vocab=40)
    ones = torch.ones(2)
    history = torch.full((2, 40), 0x7FFF, dtype=torch.int16)
    case = case._replace(state=case.state._replace(presence=ones, history=history), masks=None)
    assert torch.equal(sample(case)[1].history, history)


@pytest.mark.parametrize("k", [0, 1, 5])
def test_log_probabilities_are_the_models_own(k: int) -> None:
    case = sampling_case(4, vocab=PART + 300)
    logits = (case.logits * 4).round() / 4  # ties: the smaller id first
    rows, tokens = torch.tensor([5, 0], dtype=torch.int32), torch.arange(7, dtype=torch.int32) * 600
    results = []
    for module in (kernels, reference):
        out = LogprobsOut(garbage(2), garbage(2, k), garbage(2, k, dtype=torch.int32))
        module.logprobs(logits, rows, tokens, out, garbage(kernels.logprobs_workspace(2, PART + 300, k)))
        results.append(out)
    torch.testing.assert_close(results[0].chosen, results[1].chosen, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(results[0].top, results[1].top, atol=2e-6, rtol=1e-6)
    assert torch.equal(results[0].top_ids, results[1].top_ids)


def slot_state(state: SamplingState, init: SlotInit) -> None:
    """What a runner writes when a sequence enters a slot."""
    slot, sampling, vocab = init.slot, init.sampling, state.history.shape[1]
    state.temperature[slot], state.top_k[slot], state.top_p[slot] = (
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
    )
    state.log_min_p[slot] = torch.tensor(max(sampling.min_p, 1e-45)).log()
    state.repetition[slot], state.presence[slot] = sampling.repetition_penalty, sampling.presence_penalty
    state.frequency[slot], state.min_tokens[slot] = sampling.frequency_penalty, sampling.min_tokens
    state.seed[slot] = torch.from_numpy(np.array([sampling.seed], np.uint64).view(np.int32))
    allowed = np.ones(state.unstopped.shape[1] * 32, np.uint8)
    allowed[init.stop_ids] = 0
    state.unstopped[slot] = torch.from_numpy(np.packbits(allowed, bitorder="little").view(np.int32))
    counts = np.bincount(init.outputs, minlength=vocab).astype(np.uint16)
    counts[init.prompt] |= 0x8000
    state.history[slot] = torch.from_numpy(counts.view(np.int16))


@pytest.mark.parametrize("seed", range(4))
def test_a_slot_samples_on_the_device_as_it_does_on_a_cpu(seed: int) -> None:
    rng, slots, vocab = np.random.default_rng(seed), 5, 300
    state = sampling_case(seed, rows=slots + 1, vocab=vocab).state
    sampler = Sampler(slots, vocab, torch.device("cpu"))
    for slot in range(slots):
        sampling = Sampling(
            temperature=float(rng.choice([0, 0.7, 1.3])),
            top_k=int(rng.choice([0, 1, 5, vocab])),
            top_p=float(rng.choice([1, 0.9, 0.3])),
            min_p=float(rng.choice([0, 0.1])),
            repetition_penalty=float(rng.choice([1, 1.3])),
            presence_penalty=float(rng.choice([0, 0.5])),
            frequency_penalty=float(rng.choice([0, 0.25])),
            seed=int(rng.integers(0, 2**63)),
            min_tokens=int(rng.choice([0, 5])),
        )
        prompt, outputs, stops = (rng.integers(0, vocab, count).astype(np.int32) for count in (9, 3, 2))
        init = SlotInit(slot, sampling, prompt, outputs, stops)
        sampler.begin(init)
        slot_state(state, init)
    for index in range(3, 5):
        logits = torch.from_numpy(rng.normal(size=(slots, vocab)) * 3).float()
        bits = np.packbits(rng.integers(0, 2, (1, 320), np.uint8), axis=1, bitorder="little")
        which = torch.full((slots,), -1, dtype=torch.int32)
        which[1] = 0
        masks = GrammarMasks(which, torch.from_numpy(bits.view(np.int32)))
        case = SamplingCase(
            logits, torch.arange(slots, dtype=torch.int32), torch.full((slots,), index, dtype=torch.int32),
            masks, state,
        )  # fmt: skip
        ids, state = sample(case)
        indices = np.full(slots, index, np.int64)
        mine, _ = sampler.sample(logits, list(range(slots)), indices, Masks(np.array([1], np.int32), bits))
        assert ids.tolist() == mine.tolist()
