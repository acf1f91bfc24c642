"""What of placement can be set, and what cannot hold."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSettings:
    """Parameters of placement; every part can be switched off on its own."""

    warm: bool = True
    """Off: the score alone weighs what is cached against load."""
    warm_share: float = 0.8
    """Of the prompt, cached: from here on a worker is warm."""
    warm_load_factor: float = 1.5
    warm_load_slack: float = 8.0
    """A warm worker is overloaded beyond so many times the least load plus so many sequences."""
    warm_queue_s: float = 2.0
    """Or when so many seconds of prefill wait there."""

    queue_term: bool = True
    in_flight_term: bool = True
    attention_term: bool = True
    """Whether a long prompt's attention counts."""
    calibrated: bool = True
    """Off: all workers count as equally fast."""
    tie_share: float = 0.02
    """Scores that are so close are equal; 0: only equal ones are."""
    cold_turns: bool = True
    """Whether ties go to the worker that least recently was given a cold request."""

    patience: bool = True
    patience_factor: float = 2.0
    """Wait for a closed warm worker, in recent waits."""
    patience_saved: float = 2.0
    """The same in seconds of prefill that it saves; the longer wait counts."""
    patience_s: tuple[float, float] = (0.25, 60.0)
    """Bounds of that wait."""

    second_copies: bool = True
    """Whether a prefix that a closed worker has still to compute is computed elsewhere, too, where that is
    done about as soon: of identical requests at once not all end up on one worker."""

    long_prompts: bool = True
    long_prompt_share: float = 0.25
    """A prompt larger than this part of a worker's KV goes elsewhere where it can."""

    short_slice: float = 1 / 8
    """Of sequence slots, for short requests only; 0: none."""
    short_prompt_tokens: int = 512
    short_output_tokens: int = 64

    def validate(self) -> list[str]:
        """What cannot hold, one line each; empty when all is well."""
        shares = ("warm_share", "tie_share", "short_slice", "long_prompt_share")
        amounts = (
            "warm_load_factor",
            "warm_load_slack",
            "warm_queue_s",
            "patience_factor",
        )
        faults = [
            f"{name}: must be from 0 to 1, not {getattr(self, name):g}"
            for name in shares
            if not 0 <= getattr(self, name) <= 1
        ]
        faults += [
            f"{name}: must be at least 0, not {getattr(self, name):g}"
            for name in amounts
            if not (isfinite(getattr(self, name)) and getattr(self, name) >= 0)
        ]
        if not 0 <= self.patience_s[0] <= self.patience_s[1]:
            low, high = self.patience_s
            faults.append(f"patience_s: must rise from at least 0, not {low:g} to {high:g}")
        return faults
