"""What a user may call a model, and the directory it stands for."""

import hashlib
from pathlib import Path

from services.common.models.default import DEFAULT_MODEL_NAME, default_model, default_model_file
from services.common.models.directory import ModelDirectory
from services.common.models.errors import ModelNotFound
from services.common.models.hub import hub_model, is_hub_id
from services.common.models.progress import Progress, SilentProgress
from services.common.models.store import built_once, default_cache_dir

_DEFAULT_NAMES = ("default", "smollm2", DEFAULT_MODEL_NAME)
_CONVERSION = 1  # goes up when the same GGUF file would be converted to something else


def resolve(
    model: str = "default",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    weights: bool = True,
) -> ModelDirectory:
    """The directory of `model`, fetched and converted first where it has to be; blocks until it is there.

    Args:
        model: "default" or "smollm2"; a Hugging Face directory; a *.gguf file, converted once; or a hub
            id "org/name" where `huggingface_hub` is installed.
        cache_dir: where converted models are kept; None: `default_cache_dir()`.
        progress: who is told how far it is; None: nobody.
        weights: False for a caller that only needs the tokenizer and the configuration.

    Raises:
        ModelError: a leaf of it, with one line that says what is wrong and what to change.
    """
    directory = _locate(model, cache_dir or default_cache_dir(), progress or SilentProgress(), weights)
    directory.check(weights=weights)
    return directory


def _locate(model: str, cache_dir: Path, progress: Progress, weights: bool) -> ModelDirectory:
    if model in _DEFAULT_NAMES:
        path = default_model(cache_dir, progress, default_model_file())
        return ModelDirectory(path, DEFAULT_MODEL_NAME)
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelDirectory(path, path.resolve().name)
    if path.suffix == ".gguf":
        return ModelDirectory(_converted(path, cache_dir, progress), path.stem)
    if is_hub_id(model):
        return ModelDirectory(hub_model(model, weights=weights), model)
    known = "'default', a directory, a *.gguf file, or a hub id org/name"
    raise ModelNotFound(f"no model {model!r}; give {known}")


def _converted(file: Path, cache_dir: Path, progress: Progress) -> Path:
    """A file is known by place, size and time: hashing gigabytes at each start would cost seconds."""
    try:
        status = file.stat()
    except OSError as error:
        raise ModelNotFound(f"no file {file} ({error.strerror}); check the path") from error
    identity = f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{_CONVERSION}"
    key = f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"

    def build(target: Path) -> None:
        from services.common.models.gguf import convert  # here: most starts convert nothing

        convert(file, target, progress)

    return built_once(cache_dir, key, str(file), build)
