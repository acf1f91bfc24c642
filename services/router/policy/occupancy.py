"""How much of the pool's time goes into prompts: what decodes have to share their steps with."""

from __future__ import annotations

from math import exp, inf

_MEMORY_S = 2.0
_LEAST_S = 0.1
_MOST_TOKENS = 1 << 24


class PrefillRate:
    """Prompt tokens a second that workers compute, of all routers, over the last seconds."""

    def __init__(self, memory_s: float = _MEMORY_S) -> None:
        self._memory_s = memory_s
        self.tokens_per_s = 0.0
        self._tokens = 0.0
        self._since = -inf

    def computed(self, tokens: float) -> None:
        """Workers told of so many more."""
        if tokens > 0.0:  # not of a NaN
            self._tokens += min(tokens, _MOST_TOKENS)

    def look(self, now: float) -> None:
        """Takes what was told since the last look into account."""
        passed_s = now - self._since
        if passed_s < 0 or passed_s == inf:
            self._since, self._tokens = now, 0.0
        elif passed_s >= _LEAST_S:
            weight = 1.0 - exp(-passed_s / self._memory_s)
            self.tokens_per_s += weight * (self._tokens / passed_s - self.tokens_per_s)
            self._since, self._tokens = now, 0.0
