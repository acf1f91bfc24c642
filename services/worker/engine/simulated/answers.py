"""What a simulated model says: each token is a function of prompt, seed and output index, of nothing else.

So an answer goes on where it stopped, bit for bit, after a preemption, on another worker, among any
neighbours. Words are those of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), as a counter:

    key = BLAKE2b(engine's seed, prompt, request's seed unless greedy)
    word(index) = mix(key + (index + 2) * golden)       length = log-normal of a word of the key
"""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from services.worker.scheduler.request import Ids, Sampling
from services.worker.scheduler.step import Int32, Int64

UInt64 = npt.NDArray[np.uint64]
NEVER = 2**62  # the length of an answer that does not end by itself
LENGTH_SPREAD = 0.8  # standard deviation of the logarithm of answers' lengths
_GOLDEN, _FIRST, _SECOND = (
    np.uint64(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_LENGTH_INDEX = -1  # of the word that the length is drawn from


class Answers:
    """The answers of one model.

    Args:
        words: ids to choose from; none of them ends an answer.
        eos_id: what ends an answer; None: only its limit does.
        seed: another seed is another model.
        median_tokens: of the lengths of answers that end by themselves.
    """

    def __init__(self, words: Ids, eos_id: int | None, seed: int, median_tokens: float) -> None:
        self._words = words
        self._eos_id = eos_id
        self._seed = seed
        self._median_tokens = median_tokens

    def key(self, prompt: Ids, sampling: Sampling) -> int:
        """The source of one answer: 64 bits."""
        digest = hashlib.blake2b(digest_size=8, person=b"headrace-sim")
        digest.update(self._seed.to_bytes(8, "little", signed=True))
        digest.update((0 if sampling.greedy else sampling.seed + 1).to_bytes(9, "little"))
        digest.update(np.ascontiguousarray(prompt, np.int32).tobytes())
        return int.from_bytes(digest.digest(), "little")

    def length(self, key: int, sampling: Sampling) -> int:
        """Tokens of the answer, its end included; at least one beyond `min_tokens`."""
        if sampling.ignore_eos or self._eos_id is None:
            return NEVER
        word = int(_words(np.array([key], np.uint64), np.array([_LENGTH_INDEX]))[0])
        drawn = NormalDist(math.log(self._median_tokens), LENGTH_SPREAD).inv_cdf((word + 0.5) * 2.0**-64)
        return max(1, sampling.min_tokens + 1, round(math.exp(min(drawn, 30.0))))

    def tokens(self, keys: UInt64, lengths: Int64, indices: Int64) -> Int32:
        """Of n answers the tokens at these output indices."""  # all [n]
        chosen: Int32 = self._words[self.places(keys, indices)]
        if self._eos_id is not None:
            chosen[indices + 1 >= lengths] = self._eos_id
        return chosen

    def places(self, keys: UInt64, indices: Int64) -> Int64:
        """Where in `words` the tokens at these output indices stand."""
        return (_words(keys, indices) % np.uint64(len(self._words))).astype(np.int64)

    def runners_up(self, tokens: Int32, places: Int64, count: int) -> Int32:
        """The `count` most likely ids, the chosen ones first."""  # [n, count]
        ranks: Int32 = self._words[(places[:, None] + np.arange(count)) % len(self._words)]
        ranks[:, :1] = tokens[:, None]
        return ranks

    def not_of(self, forbidden: Ids, token: int, place: int) -> int:
        """The token, or the next word that is allowed; the token where none is."""
        count = len(self._words)
        candidates = (
            int(self._words[(place + step) % count]) for step in range(min(count, len(forbidden) + 1))
        )
        return next((word for word in (token, *candidates) if word not in forbidden), token)


def _words(keys: UInt64, indices: Int64) -> UInt64:
    state = keys + (indices + 2).astype(np.uint64) * _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return np.asarray(state ^ (state >> np.uint64(31)), np.uint64)
