"""Models from the Hugging Face hub, where the extra `hub` is installed and the hub can be reached."""

import re
from pathlib import Path

from services.common.models.errors import ModelError, ModelNotFound, ModelUnavailable

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TEXTS = ["*.json", "*.jinja"]
_WEIGHTS = ["*.safetensors"]


def is_hub_id(model: str) -> bool:
    """Whether `model` has the form `org/name`."""
    return _HUB_ID.fullmatch(model) is not None and not model.startswith((".", "/"))


def hub_model(model: str, *, weights: bool) -> Path:
    """The snapshot of a repository in the hub's own cache, downloaded where it is not there.

    Raises:
        ModelUnavailable: `huggingface_hub` is not installed, or the hub cannot be reached.
        ModelNotFound: the hub has no such repository, or it is gated.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        advice = "install headrace[hub] to fetch it from the hub"
        raise ModelUnavailable(f"no directory {model} here; {advice}") from error
    try:
        return Path(snapshot_download(model, allow_patterns=_TEXTS + _WEIGHTS if weights else _TEXTS))
    except Exception as error:  # httpx, OS and hub errors share no base class but this
        raise _one_line(model, error) from error


def _one_line(model: str, error: Exception) -> ModelError:
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):  # a gated one is a kind of it
        return ModelNotFound(f"the hub shows no model {model}; check the name, or log in where it is gated")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelUnavailable(f"cannot fetch {model} from the hub: {reason}; check the network")
