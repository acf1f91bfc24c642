"""The noise is the published generator's, the same in numpy and torch, and only winners' noise is drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.engine.philox import (
    GUMBEL_MAX,
    GUMBEL_MIN,
    gumbel,
    philox4x32,
    split_seeds,
    token_words,
)
from services.worker.engine.torch.gumbel import choose, make_draw

VECTORS = json.loads((Path(__file__).parent / "philox_vectors.json").read_text())
# Random123's own known-answer test (kat_vectors, philox 4x32 10): counter, key, result.
RANDOM123 = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def words(text: str) -> list[np.ndarray]:
    return [np.array([int(word, 16)]) for word in text.split()]


def noise_of(seeds: np.ndarray, indices: np.ndarray, vocab: int) -> torch.Tensor:
    """All noise of a vocabulary, [rows, vocab]: what `choose` must not have to compute."""
    low, high = (torch.from_numpy(part)[:, None] for part in split_seeds(seeds))
    group = torch.arange(-(-vocab // 4))[None, :]
    drawn = token_words(low, high, torch.from_numpy(indices)[:, None], group)
    return gumbel(torch.stack(drawn, dim=-1).view(len(seeds), -1))[:, :vocab]


@pytest.mark.parametrize(("counter", "key", "result"), RANDOM123)
def test_matches_the_published_known_answers(counter: str, key: str, result: str) -> None:
    c0, c1, c2, c3 = words(counter)
    k0, k1 = words(key)
    drawn = philox4x32((c0, c1, c2, c3), (k0, k1))
    assert [f"{int(word[0]):08x}" for word in drawn] == result.split()


def test_recorded_vectors_hold_in_numpy_and_torch() -> None:
    for row in VECTORS["tokens"]:
        seed, index, token = int(row["seed"]), row["index"], row["token"]
        low, high = split_seeds(np.array([seed], np.uint64))
        in_numpy = token_words(low, high, np.array([index]), np.array([token >> 2]))[token & 3]
        in_torch = token_words(
            torch.from_numpy(low), torch.from_numpy(high), torch.tensor([index]), torch.tensor([token >> 2])
        )[token & 3]
        assert int(in_numpy[0]) == int(in_torch[0]) == row["word"]
        assert gumbel(in_torch).item() == pytest.approx(row["gumbel"], rel=1e-14)


def test_noise_lies_within_its_bounds() -> None:
    extremes = gumbel(torch.tensor([0, 2**32 - 1]))
    assert extremes.tolist() == pytest.approx([GUMBEL_MIN, GUMBEL_MAX], rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    rows=st.integers(1, 5),
    vocab=st.sampled_from([1, 3, 17, 512, 5003]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 5.0, 40.0]),
    kept=st.sampled_from([1, 4, 10**6]),
)
def test_choice_is_the_argmax_over_the_whole_vocabulary(
    seed: int, rows: int, vocab: int, spread: float, kept: int
) -> None:
    random = np.random.default_rng(seed)
    scores = torch.from_numpy((random.standard_normal((rows, vocab)) * spread).astype(np.float32))
    seeds = random.integers(0, 2**64, rows, dtype=np.uint64)
    indices = random.integers(0, 4096, rows)
    floor = scores.topk(min(kept, vocab), dim=-1).values[:, -1]
    chosen = choose(scores, floor, make_draw(split_seeds(seeds), indices, torch.device("cpu")))
    noisy = (scores.double() + noise_of(seeds, indices, vocab)).masked_fill(
        scores < floor[:, None], -math.inf
    )
    assert chosen.tolist() == noisy.argmax(-1).tolist()


def test_choices_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    count = 20_000
    seeds = np.full(count, 99, np.uint64)
    draw = make_draw(split_seeds(seeds), np.arange(count), torch.device("cpu"))
    scores = probabilities.log().expand(count, -1).contiguous()
    chosen = choose(scores, torch.full((count,), -math.inf), draw)
    shares = torch.bincount(chosen, minlength=4) / count
    assert (shares - probabilities).abs().max() < 0.015  # four standard deviations
