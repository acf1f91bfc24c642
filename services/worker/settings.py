"""What an operator can choose about a worker. The engine's own settings are read off its dataclass."""

from __future__ import annotations

import os
import random
import re
import socket
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_type_hints

from pydantic import Field, create_model, field_validator
from pydantic_settings import NoDecode

from services.common.models import ModelDirectory
from services.common.settings import ServiceSettings, variable
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.session.tampering import FrameFaults

_OF_ENGINE = frozenset(field.name for field in fields(EngineSettings)) - {"model", "model_name", "scheduler"}
Addresses = Annotated[tuple[str, ...], NoDecode]
Labels = Annotated[dict[str, str], NoDecode]


def _engine_flags() -> dict[str, Any]:
    """The engine's fields, with their bounds and descriptions, as fields of settings."""
    hints = get_type_hints(EngineSettings, include_extras=True)
    return {
        each.name: (hints[each.name], each.default)
        for each in fields(EngineSettings)
        if each.name in _OF_ENGINE
    }


if TYPE_CHECKING:
    _EngineFlags = ServiceSettings
else:
    _EngineFlags = create_model("_EngineFlags", __base__=ServiceSettings, **_engine_flags())


class WorkerSettings(_EngineFlags):
    """Settings of one worker process."""

    service: ClassVar[str] = "worker"

    routers: Addresses = Field(
        default=("127.0.0.1:50061",), description="host:port of routers' mesh ports; they name their siblings"
    )
    listen: str = Field(default="127.0.0.1:0", description="host:port for health and reflection; port 0: any")
    model: str = Field(
        default="default", description='"default", a model directory, a *.gguf file, or a hub id org/name'
    )
    worker_id: str | None = Field(
        default=None,
        max_length=128,
        description="name, unique in the mesh; unset: host name with the GPU, or the process on a CPU",
    )
    labels: Labels = Field(default={}, description="placement labels, as region=eu,pool=chat")
    max_chunk: int = Field(
        default=SchedulerSettings().max_chunk, ge=1, description="most prompt tokens in a step"
    )
    lease_dir: Path = Field(
        default=Path(tempfile.gettempdir()) / "headrace-gpus",
        description="directory of GPU leases, shared by all workers of a machine",
    )
    start_timeout_s: float = Field(
        default=1800.0, gt=0, description="longest load of the model, in seconds; routers are not waited for"
    )

    @field_validator("routers", mode="before")
    @classmethod
    def _addresses(cls, given: object) -> object:
        """Accepts `a:1,b:2` beside a list."""
        if isinstance(given, str):
            return tuple(part.strip(" \"'") for part in given.strip("[] ").split(",") if part.strip())
        return given

    @field_validator("routers")
    @classmethod
    def _some(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [
            each for each in addresses if not each.rpartition(":")[0] or not each.rpartition(":")[2].isdigit()
        ]
        if wrong or not addresses:
            raise ValueError(
                f"allowed are host:port,host:port,… of at least one router, not {wrong or 'none'}"
            )
        return addresses

    @field_validator("labels", mode="before")
    @classmethod
    def _pairs(cls, given: object) -> object:
        """Accepts `a=1,b=2` beside a table."""
        if not isinstance(given, str):
            return given
        pairs = [part.strip().partition("=") for part in given.split(",") if part.strip()]
        if not all(key and sign for key, sign, _ in pairs):
            raise ValueError("allowed are labels as region=eu,pool=chat")
        return {key: value for key, _, value in pairs}

    def engine_settings(self, model: ModelDirectory) -> EngineSettings:
        """The engine's settings for a resolved model."""
        scheduler = SchedulerSettings(max_chunk=self.max_chunk)
        chosen = {name: getattr(self, name) for name in _OF_ENGINE}
        return EngineSettings(model=model.path, model_name=model.name, scheduler=scheduler, **chosen)

    def with_variables(self, message: str) -> str:
        """The engine's words, its settings named by variable; but for those that are English words, too."""
        names = "|".join(each for each in sorted(_OF_ENGINE) if "_" in each)
        return re.sub(rf"\b({names})\b", lambda found: variable(self, found[0]), message)

    @property
    def needs_weights(self) -> bool:
        """Whether the engine computes with the model's weights."""
        engine: str = getattr(self, "engine")  # noqa: B009
        return engine != "simulated"

    @property
    def patience_s(self) -> float:
        """The least that an engine must be stuck for before the worker ends itself."""
        seconds: float = getattr(self, "hang_s")  # noqa: B009
        return seconds

    @property
    def may_choose_gpu(self) -> bool:
        """Whether no device was named: a GPU is claimed where there are several."""
        chosen: tuple[str, int] = (getattr(self, "device"), getattr(self, "device_index"))  # noqa: B009
        return self.needs_weights and chosen[0] != "cpu" and chosen[1] == 0

    def frame_faults(self) -> FrameFaults:
        """What a simulated worker does to its frames; others are honest."""
        if getattr(self, "engine") != "simulated":  # noqa: B009
            return FrameFaults()
        drop_rate, load_factor, seed = (
            getattr(self, f"simulated_{name}") for name in ("drop_rate", "load_factor", "seed")
        )
        return FrameFaults(drop_rate=drop_rate, load_factor=load_factor, random=random.Random(seed))

    def name(self, gpu: str | None) -> str:
        """The worker's name: the one that was set, else host and GPU, else host and process."""
        return self.worker_id or f"{socket.gethostname()}-{gpu[:12] if gpu else os.getpid()}"
