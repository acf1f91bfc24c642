"""The Gumbel-max choice over a vocabulary, with noise only for tokens that can still win.

Noise lies in a known interval, so a token whose logit is too far behind the best noisy one cannot win
whatever its noise. The result is exactly the argmax over the whole vocabulary, for a fraction of the work.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from services.worker.engine.philox import GUMBEL_MAX, Seeds, gumbel, gumbel_floor, token_words

_FIRST = 16  # tokens whose noise is drawn first, the most likely ones: their best is what others must beat
_SLACK = 1e-6  # of bounds against rounding


class Draw(NamedTuple):
    """The randomness of each row, as tensors [rows]."""

    low: torch.Tensor
    high: torch.Tensor
    counter: torch.Tensor  # output index

    def of(self, rows: torch.Tensor) -> Draw:
        return Draw(self.low[rows], self.high[rows], self.counter[rows])


def make_draw(seeds: Seeds, indices: npt.NDArray[np.int64], device: torch.device) -> Draw:
    """Seeds and output indices, one a row."""
    low, high, index = (torch.from_numpy(part).to(device) for part in (*seeds, indices))
    return Draw(low, high, index)


def choose(scores: torch.Tensor, floor: torch.Tensor, draw: Draw) -> torch.Tensor:
    """argmax over tokens of score + noise among tokens with score >= floor.

    scores: [rows, vocab] fp32, floor: [rows] fp32, at most each row's largest score. Returns ids, [rows]; the
    smallest where two are equal.
    """
    to_beat = _best_of_likeliest(scores, floor, draw)  # [rows]
    within = scores >= torch.maximum(floor.double(), to_beat - GUMBEL_MAX - _SLACK).unsqueeze(1)
    groups = _groups_of_four(within)
    rows, group = groups.any(-1).nonzero(as_tuple=True)
    tokens = group.unsqueeze(1) * 4 + torch.arange(4, device=scores.device)  # [candidates, 4]
    mine = draw.of(rows)
    words = torch.stack(token_words(mine.low, mine.high, mine.counter, group), dim=-1)
    gap = to_beat - scores.amax(-1) - _SLACK  # less noise than this wins for nobody
    alive = groups[rows, group] & (words >= gumbel_floor(gap)[rows].unsqueeze(1))
    return _winners(scores, to_beat, rows[alive.nonzero()[:, 0]], tokens[alive], words[alive])


def _best_of_likeliest(scores: torch.Tensor, floor: torch.Tensor, draw: Draw) -> torch.Tensor:
    values, tokens = scores.topk(min(_FIRST, scores.shape[-1]), dim=-1)  # [rows, first]
    noisy = values.double() + gumbel(_words_of(tokens, draw))
    return noisy.masked_fill(values < floor.unsqueeze(1), float("-inf")).amax(-1)


def _words_of(tokens: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Words of [rows, n] tokens."""
    low, high, index = (part.unsqueeze(1) for part in draw)
    words = torch.stack(token_words(low, high, index, tokens >> 2), dim=-1)
    return words.gather(-1, (tokens & 3).unsqueeze(-1)).squeeze(-1)


def _groups_of_four(mask: torch.Tensor) -> torch.Tensor:
    """[rows, vocab] -> [rows, ceil(vocab / 4), 4]"""
    padded = torch.nn.functional.pad(mask, (0, -mask.shape[-1] % 4))
    return padded.view(mask.shape[0], -1, 4)


def _winners(
    scores: torch.Tensor, to_beat: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, words: torch.Tensor
) -> torch.Tensor:
    """Of flat candidates (row, token, word), the best token of each row."""
    noisy = scores[rows, tokens].double() + gumbel(words)
    best = torch.full_like(to_beat, float("-inf")).scatter_reduce(0, rows, noisy, "amax")
    equal = torch.where(noisy == best[rows], tokens, scores.shape[-1])
    none = torch.full_like(rows.new_empty(len(to_beat)), scores.shape[-1])
    return none.scatter_reduce(0, rows, equal, "amin")
