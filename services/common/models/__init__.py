"""The model store: from what a user calls a model to a directory that every service can load.

Only what the worker, the tokenizer and the command line all need lives here, and nothing of it
imports torch or grpc.
"""

from services.common.models.directory import ModelDirectory
from services.common.models.errors import (
    ModelDamaged,
    ModelError,
    ModelNotFound,
    ModelUnavailable,
    ModelUnsupported,
)
from services.common.models.progress import LineProgress, Progress, RichProgress, SilentProgress, progress_to
from services.common.models.resolve import resolve

__all__ = [
    "LineProgress",
    "ModelDamaged",
    "ModelDirectory",
    "ModelError",
    "ModelNotFound",
    "ModelUnavailable",
    "ModelUnsupported",
    "Progress",
    "RichProgress",
    "SilentProgress",
    "progress_to",
    "resolve",
]
