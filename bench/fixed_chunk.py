"""What our policy is compared to: priority with a fixed token budget a step, as other engines schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.worker.scheduler.draft import Draft
from services.worker.scheduler.planner import Planner

_NO_LIMIT_S = 1e6


class FixedChunkPlanner(Planner):
    """All decodes, then prompts by class, `max_chunk` tokens in all; no target, no pause, no gate."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self._chosen = self._settings

    def draft(self, now: float) -> Draft:
        draft = Draft()
        foreground, background = self._decodes()
        self._join(draft, [*foreground, *background])
        left = max(0, self._chosen.max_chunk - len(draft))
        self._settings = replace(self._chosen, max_chunk=left)
        for background_too in (False, True):
            self._add_prompts(draft, _NO_LIMIT_S, now, background=background_too)
        return draft
