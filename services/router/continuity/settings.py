"""What becomes of streams whose worker is lost."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import SettingsGroup


class FailoverSettings(SettingsGroup):
    """What becomes of requests whose worker breaks, leaves, or is much slower than another."""

    return_s: float = Field(
        default=0.1,
        ge=0,
        description="how long requests of a broken session wait for its worker, in seconds; up to 0.25 where "
        "others would take as long to compute them again; 0: not at all",
    )
    migration_s: float = Field(
        default=1.0,
        gt=0,
        description="seconds of prefill of moved requests that are on their way to one worker at a time",
    )
    moving: bool = Field(
        default=True, description="whether running streams go where they end sooner, recomputation included"
    )
    moving_stay_s: float = Field(
        default=5.0,
        ge=0,
        description="time on a worker before a stream goes to a faster one, in seconds",
    )
    moving_saved_s: float = Field(
        default=2.0, ge=0, description="least that a stream must gain by being moved, in seconds"
    )
