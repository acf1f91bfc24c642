"""SERVING means: the model is loaded, and at least one router has this worker."""

from __future__ import annotations

from typing import Any

from services.common.lifecycle import Health, NotServing, Serving


class AttachedHealth(Health):
    """The health of a process that also needs somebody to serve for."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self._wanted: Any = NotServing
        self._attached = False

    async def set(self, status: Any) -> None:
        """Sets what the process is ready for."""
        self._wanted = status
        await self._tell()

    async def attached(self, attached: bool) -> None:
        """Sets whether any session is open."""
        if attached != self._attached:
            self._attached = attached
            await self._tell()

    async def _tell(self) -> None:
        serving = self._attached and self._wanted == Serving
        await super().set(Serving if serving else NotServing)
