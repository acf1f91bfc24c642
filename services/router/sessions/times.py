"""Times of workers' sessions."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from services.common.settings import SettingsGroup

DAY_S = 86_400.0
"""Longest of what workers are told, in whole milliseconds of 32 bits: more would end every handshake."""


class SessionTimes(SettingsGroup):
    """Times of workers' sessions, in seconds."""

    handshake_s: float = Field(default=2.0, gt=0, description="longest handshake")
    heartbeat_s: float = Field(
        default=0.2, ge=0.001, le=DAY_S, description="longest time between a worker's frames"
    )
    stale_s: float = Field(default=1.0, gt=0, description="silence after which a worker gets no new work")
    lost_s: float = Field(default=1.5, gt=0, description="silence after which its requests are moved")
    hung_s: float = Field(
        default=1.0,
        gt=0,
        description="work without a finished step after which its requests are moved, at least; "
        "20 of its last steps or 3 of the longest it can be in, where that is more",
    )
    resume_grace_s: float = Field(
        default=3.0, ge=0, le=DAY_S, description="how long a worker keeps requests of a broken session"
    )
    orphan_hold_s: float = Field(
        default=5.0,
        ge=0,
        le=DAY_S,
        description="how long a worker keeps requests for a client that resumes elsewhere",
    )

    @property
    def kept_s(self) -> float:
        """How long a worker keeps what runs there after its session broke."""
        return max(self.resume_grace_s, self.orphan_hold_s)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.heartbeat_s < self.stale_s <= self.lost_s:
            raise ValueError(
                f"heartbeat_s {self.heartbeat_s:g}, stale_s {self.stale_s:g} and lost_s {self.lost_s:g} "
                "must rise: a worker that speaks as often as it is to would count as lost"
            )
        return self
