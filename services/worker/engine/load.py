"""Which engine runs a model: the one place that knows all engines."""

from __future__ import annotations

from collections.abc import Callable

from services.worker.engine.base import LoadedEngine
from services.worker.engine.settings import EngineSettings

EngineLoader = Callable[[EngineSettings], LoadedEngine]


def load_engine(settings: EngineSettings) -> LoadedEngine:
    """Load the model that the settings name. Raises EngineLoadError: one line that says what to change."""
    if settings.engine == "simulated":
        from services.worker.engine.simulated.load import load_simulated_engine

        return load_simulated_engine(settings)
    from services.worker.engine.calibrate import calibrate
    from services.worker.engine.torch.load import load_torch_engine

    engine = load_torch_engine(settings)
    return engine._replace(prior=calibrate(engine.runner, max_tokens=settings.scheduler.max_chunk))
