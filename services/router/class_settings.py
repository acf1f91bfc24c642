"""What latency classes promise, and how their requests are treated."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from services.common.settings import SettingsGroup

Target = Annotated[float | None, Field(gt=0, description="seconds; unset: no target")]
Patience = Annotated[
    float | None,
    Field(gt=0, description="wait for a worker where none is, in seconds; unset: the deadline"),
]
Refused = Annotated[
    float | None,
    Field(gt=0, description="predicted first token at which it is refused, in seconds; unset: never"),
]
Delay = Annotated[float, Field(ge=0, le=10, description="longest that a token waits, in seconds")]
Count = Annotated[int, Field(ge=1, description="most tokens that wait")]
Aging = Annotated[float, Field(ge=0, description="wait until it goes before fresh requests, in seconds")]
Share = Annotated[float, Field(description="of GPU seconds while all classes wait, against the other shares")]


class ClassSettings(SettingsGroup):
    """What a latency class promises and how it is treated."""

    share: Share = 0.0
    ttft_s: Target = None
    tpot_s: Target = None
    flush_delay_s: Delay = 0.0
    flush_tokens: Count = 1
    aging_s: Aging = 0.0
    patience_s: Patience = None
    refused_after_s: Refused = None


class InteractiveSettings(ClassSettings):
    """Defaults of INTERACTIVE."""

    share: Share = 70.0
    ttft_s: Target = 0.5
    tpot_s: Target = 0.04
    patience_s: Patience = 5.0
    refused_after_s: Refused = 30.0


class StandardSettings(ClassSettings):
    """Defaults of STANDARD."""

    share: Share = 25.0
    ttft_s: Target = 2.0
    tpot_s: Target = 0.08
    flush_delay_s: Delay = 0.025
    flush_tokens: Count = 8
    aging_s: Aging = 10.0
    patience_s: Patience = 30.0
    refused_after_s: Refused = 120.0


class BatchSettings(ClassSettings):
    """Defaults of BATCH."""

    share: Share = 5.0
    flush_delay_s: Delay = 0.2
    flush_tokens: Count = 64
    aging_s: Aging = 600.0
