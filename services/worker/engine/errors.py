"""The engine's exceptions.

EngineError
├── EngineLoadError      the engine cannot start; the message is one line that says what to change
│   ├── ModelFormatError     files missing, corrupt, or not what the config says
│   ├── UnsupportedModel     an architecture or feature that no engine here has
│   └── NotEnoughMemory      weights or KV blocks do not fit
├── EngineDied           it ran and is gone; every unfinished request must be resumed elsewhere
│   └── EngineHangs          it is there and finishes no step any more
└── GrammarError         one request's grammar is invalid, needs too much, or cannot be continued
"""

from __future__ import annotations


class EngineError(Exception):
    """Root of what this package raises on purpose."""


class EngineLoadError(EngineError):
    """The engine cannot start."""


class ModelFormatError(EngineLoadError):
    """The model directory is not what it claims to be."""


class UnsupportedModel(EngineLoadError):
    """Well-formed, but not a model that this engine runs."""


class NotEnoughMemory(EngineLoadError):
    """What was asked for does not fit."""


class EngineDied(EngineError):
    """The engine ended without being asked to."""


class EngineHangs(EngineDied):
    """No step has finished for far longer than one can take: the worker ends for that."""

    exit_code = 75  # of its process: EX_TEMPFAIL, another one may do better


class GrammarError(EngineError):
    """The request alone fails; the message is a sentence for its caller."""
