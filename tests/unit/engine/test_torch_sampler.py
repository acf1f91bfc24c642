"""Filters, penalties and log-probabilities against the plainest possible computation of the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.engine.torch.sampler import Sampler
from services.worker.scheduler.request import NO_IDS, Sampling
from services.worker.scheduler.step import NOT_FINITE, Masks, SlotInit

VOCAB = 64
DRAWS = 300
CPU = torch.device("cpu")


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def sampler_of(*inits: SlotInit) -> Sampler:
    sampler = Sampler(DRAWS, VOCAB, CPU)
    for init in inits:
        sampler.begin(init)
    return sampler


def init_of(
    slot: int, sampling: Sampling, prompt: np.ndarray = NO_IDS, outputs: np.ndarray = NO_IDS
) -> SlotInit:
    return SlotInit(slot, sampling, prompt, outputs, ids(5))


def allowed(scores: np.ndarray, sampling: Sampling) -> set[int]:
    """What top-k, then top-p, and min-p let through, by sorting."""
    order = sorted(range(VOCAB), key=lambda token: -scores[token])
    order = order[: sampling.top_k or VOCAB]
    weights = np.exp([scores[token] - scores[order[0]] for token in order])
    mass = np.cumsum(weights) / weights.sum()
    kept = order[: int((mass < sampling.top_p).sum()) + 1]
    return {token for token in kept if math.exp(scores[token] - scores[order[0]]) >= sampling.min_p}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    top_k=st.sampled_from([0, 1, 5, 40]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.1]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
)
def test_only_allowed_tokens_are_drawn_and_all_of_them(
    seed: int, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    logits = torch.from_numpy(np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32) * 2)
    slots = list(range(DRAWS))
    sampler = sampler_of(*(init_of(slot, sampling) for slot in slots))
    tokens, _ = sampler.sample(logits.repeat(DRAWS, 1), slots, np.arange(DRAWS))
    drawn = set(tokens.tolist())
    scores = logits.double().numpy() / 0.7
    may = allowed(scores, sampling)
    assert drawn <= may
    likely = {token for token in may if math.exp(scores[token] - scores.max()) > 0.3}
    assert likely <= drawn


def test_penalties_match_their_definition_and_follow_the_output() -> None:
    sampling = Sampling(repetition_penalty=1.5, presence_penalty=0.7, frequency_penalty=0.2)
    prompt, outputs = [3, 4, 4], [9, 9, 10]
    sampler = sampler_of(init_of(2, sampling, ids(*prompt), ids(*outputs)))
    random = torch.Generator().manual_seed(1)
    for step in range(20):
        logits = torch.randn(VOCAB, generator=random)
        expected = logits.clone()
        for token in {*prompt, *outputs}:
            expected[token] = expected[token] / 1.5 if expected[token] > 0 else expected[token] * 1.5
        for token in set(outputs):
            expected[token] -= 0.7 + 0.2 * outputs.count(token)
        tokens, _ = sampler.sample(logits[None].clone(), [2], np.array([3 + step]))
        assert int(tokens[0]) == int(expected.argmax())
        outputs.append(int(tokens[0]))


def test_a_slot_forgets_its_last_sequence() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 9], logits[0, 10] = 2.0, 1.9
    sampler = sampler_of(init_of(1, Sampling(presence_penalty=1.0), outputs=ids(9)))
    assert sampler.sample(logits.clone(), [1], np.array([1]))[0].tolist() == [10]
    sampler.begin(init_of(1, Sampling()))
    assert sampler.sample(logits.clone(), [1], np.array([0]))[0].tolist() == [9]


def test_stop_ids_cannot_be_chosen_before_min_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 5] = 9.0
    sampler = sampler_of(init_of(0, Sampling(min_tokens=2)))
    chosen = [sampler.sample(logits.clone(), [0], np.array([index]))[0].item() for index in range(4)]
    assert [token == 5 for token in chosen] == [False, False, True, True]


def test_logprobs_are_the_models_own() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(4))
    sampler = sampler_of(
        init_of(0, Sampling(logprobs=3)),
        init_of(1, Sampling()),
        init_of(2, Sampling(temperature=2.0, seed=1, logprobs=0, presence_penalty=1.0), outputs=ids(1)),
    )
    tokens, logprobs = sampler.sample(logits.clone(), [0, 1, 2], np.array([0, 0, 0]))
    natural = logits.log_softmax(-1)
    assert logprobs is not None
    assert logprobs.rows == [0, 2]
    assert logprobs.chosen.tolist() == pytest.approx([natural[row, tokens[row]].item() for row in (0, 2)])
    assert logprobs.top_ids[0].tolist() == natural[0].topk(3).indices.tolist()


def test_a_row_without_finite_logits_fails_alone() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(4))
    best = int(logits[1].argmax())
    logits[0, 7] = math.nan
    logits[2] = -math.inf
    sampler = sampler_of(
        init_of(0, Sampling(temperature=1.0)), init_of(1, Sampling()), init_of(2, Sampling())
    )
    tokens, _ = sampler.sample(logits, [0, 1, 2], np.array([0, 0, 0]))
    assert tokens.tolist() == [NOT_FINITE, best, NOT_FINITE]


@pytest.mark.parametrize("temperature", [1e-4, 1e-9, 1e-38, 1e-45])
def test_the_smallest_temperatures_choose_the_likeliest_token(temperature: float) -> None:
    logits = torch.randn(DRAWS, VOCAB, generator=torch.Generator().manual_seed(4)) * 1e3
    inits = [init_of(slot, Sampling(temperature=temperature, seed=slot)) for slot in range(DRAWS)]
    tokens, _ = sampler_of(*inits).sample(logits.clone(), list(range(DRAWS)), np.zeros(DRAWS, np.int64))
    assert tokens.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1.0])
def test_the_smallest_repetition_penalty_fails_nothing(temperature: float) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 9], logits[0, 10] = 1.0, 5.0
    sampling = Sampling(temperature=temperature, repetition_penalty=1e-45, seed=3)
    tokens, _ = sampler_of(init_of(0, sampling, ids(9))).sample(logits, [0], np.array([0]))
    assert tokens.tolist() == [9]


def test_masked_rows_choose_what_they_may_and_other_rows_are_not_touched() -> None:
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(8))
    kinds = [
        Sampling(),
        Sampling(temperature=1.0, seed=5, top_k=3),
        Sampling(temperature=2.0, seed=6, top_p=0.4),
    ]
    samplings = [kinds[row // 2] for row in range(6)]
    inits = [init_of(slot, sampling) for slot, sampling in enumerate(samplings)]
    may = torch.rand(3, VOCAB, generator=torch.Generator().manual_seed(7)) < 0.05
    may[:, 7] = True
    bits = np.packbits(np.pad(may.numpy(), ((0, 0), (0, 24))), axis=1, bitorder="little")
    masks = Masks(np.array([1, 3, 5], np.int32), bits)
    free, _ = sampler_of(*inits).sample(logits.clone(), list(range(6)), np.zeros(6, np.int64))
    bound, _ = sampler_of(*inits).sample(logits.clone(), list(range(6)), np.zeros(6, np.int64), masks)
    assert bound[[0, 2, 4]].tolist() == free[[0, 2, 4]].tolist()
    assert all(may[index, bound[row]] for index, row in enumerate((1, 3, 5)))
    assert bound[1] == logits[1].masked_fill(~may[0], -torch.inf).argmax()


def test_min_tokens_leaves_stop_ids_of_masked_rows_to_the_mask() -> None:
    init = SlotInit(0, Sampling(min_tokens=9), ids(1), ids(), np.array([4], np.int32))
    only = Masks(np.array([0], np.int32), np.zeros((1, -(-VOCAB // 8)), np.uint8))
    only.bits[0, 0] = 1 << 4
    tokens, _ = sampler_of(init).sample(torch.zeros(1, VOCAB), [0], np.array([0]), only)
    assert tokens.tolist() == [4]
