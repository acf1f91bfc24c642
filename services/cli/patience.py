"""What a command says and does while its client waits to ask again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.cli import output
from services.cli.errors import CliError, one_line

if TYPE_CHECKING:
    from headrace.client import HeadraceError

NOTICEABLE_S = 0.5
NO_WORKER = "NO_WORKER"
NO_WORKER_S = 60.0
"""How long a worker may be missing: one that died is back before, one that nobody started never comes."""


class Patience:
    """Called before each wait: says why nothing comes, once a reason, and ends a wait for no worker.

    Args:
        no_worker_s: seconds; None: as long as the call may take.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, no_worker_s: float | None = NO_WORKER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._no_worker_s = no_worker_s
        self._clock = clock
        self._missing_since_s: float | None = None
        self._said = ""

    def __call__(self, error: HeadraceError, pause_s: float) -> None:
        """Raises CliError when it has been enough: that ends the call."""
        if error.reason == NO_WORKER:
            self._miss(error)
        else:
            self._missing_since_s = None
        if pause_s >= NOTICEABLE_S and str(error) != self._said:
            self._said = str(error)
            reason = f" ({error.reason})" if error.reason else ""
            output.note(f"waiting {pause_s:.1f} s to ask again{reason}: {error}", dim=True)

    def _miss(self, error: HeadraceError) -> None:
        now_s = self._clock()
        self._missing_since_s = now_s if self._missing_since_s is None else self._missing_since_s
        if self._no_worker_s is not None and now_s - self._missing_since_s >= self._no_worker_s:
            raise CliError(
                f"{one_line(error)}; that is so for {self._no_worker_s:g} s: `headrace workers` lists who is "
                "there with which labels, --timeout waits longer"
            )
