"""Faults on request, for tests of everything around an engine. Off unless set."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

DEATH_CODE = 86  # exit code of an engine that died on request


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """When to fail; tokens and steps are counted over the life of the engine's process."""

    die_at_token: int | None = None  # the process ends; this token is never reported
    hang_at_token: int | None = None  # the step with this token never completes; heartbeats go on
    slow_after_steps: int = 0
    slow_factor: float = 1.0  # of the steps after those


def _die() -> None:
    os._exit(DEATH_CODE)


def _hang() -> None:
    threading.Event().wait()


class Saboteur:
    """Counts tokens and strikes. `die` and `hang` do not return, except in tests."""

    def __init__(
        self, faults: Faults, die: Callable[[], None] = _die, hang: Callable[[], None] = _hang
    ) -> None:
        self._faults = faults
        self._die = die
        self._hang = hang
        self._tokens = 0

    def stretch(self, step_number: int) -> float:
        """By how much longer this step takes."""
        return self._faults.slow_factor if step_number > self._faults.slow_after_steps else 1.0

    def before_result(self, tokens: int) -> None:
        """A step with so many new tokens is about to be reported."""
        before, self._tokens = self._tokens, self._tokens + tokens
        if before < (self._faults.hang_at_token or 0) <= self._tokens:
            self._hang()
        if before < (self._faults.die_at_token or 0) <= self._tokens:
            self._die()
