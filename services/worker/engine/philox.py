"""Counter-based randomness: noise is a function of seed, output index and token id, and of nothing else.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011):

    key = the 64-bit seed, low word first      counter = (output index, token id >> 2, 0, 0)
    word = lane (token id & 3) of the result   u = (word + 0.5) / 2**32
    gumbel = -log(-log(u))                     in float64

The same code runs on numpy arrays and on torch tensors of 64-bit integers that hold unsigned 32-bit words:
a product wraps at 64 bits, its halves are masked out.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

Words = TypeVar("Words", npt.NDArray[np.int64], torch.Tensor)

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

GUMBEL_MAX = -math.log(-math.log1p(-(2.0**-33)))  # of word 2**32 - 1: 22.87
GUMBEL_MIN = -math.log(33 * math.log(2.0))  # of word 0: -3.13


class Seeds(NamedTuple):
    """64-bit seeds as words of 32 bits in int64."""

    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]


def split_seeds(seeds: npt.NDArray[np.uint64]) -> Seeds:
    """The two words of each seed."""
    return Seeds((seeds & np.uint64(_MASK)).astype(np.int64), (seeds >> np.uint64(32)).astype(np.int64))


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Ten rounds; shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def token_words(low: Words, high: Words, index: Words, group: Words) -> tuple[Words, Words, Words, Words]:
    """Words of tokens 4 * group .. 4 * group + 3 at an output index."""
    zero = group * 0
    return philox4x32((index + zero, group, zero, zero), (low + zero, high + zero))


def gumbel(words: torch.Tensor) -> torch.Tensor:
    """Gumbel noise of words; float64, same shape."""
    return -torch.log(-torch.log((words.double() + 0.5) * 2.0**-32))


def gumbel_floor(gap: torch.Tensor) -> torch.Tensor:
    """The smallest word, less one, whose noise exceeds `gap`; a bound to skip the logarithms with."""
    return torch.exp(-torch.exp(-gap)) * 2.0**32 - 1.5


def _multiply(words: Words, multiplier: int) -> tuple[Words, Words]:
    product = words * multiplier
    return (product >> 32) & _MASK, product & _MASK
