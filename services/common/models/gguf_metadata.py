"""Typed reading of a GGUF file's metadata and tensors (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np

from services.common.models.errors import ModelDamaged, ModelUnsupported

T = TypeVar("T")


class GgufFile:
    """An open GGUF file: `text`, `integer` and the like read one metadata key each."""

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            ModelDamaged: it is no GGUF file, or it is cut short.
        """
        self.path = path
        self._reader = _open(path)
        self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    def has(self, key: str) -> bool:
        return self._reader.get_field(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        return self._read(key, str, default)

    def integer(self, key: str, default: int | None = None) -> int:
        return self._read(key, int, default)

    def real(self, key: str, default: float | None = None) -> float:
        """A float32 as the shortest decimal that names it: 1e-05, not 9.999999747378752e-06."""
        value = self._read(key, float, default)
        return float(np.format_float_scientific(np.float32(value), unique=True))

    def flag(self, key: str, default: bool) -> bool:
        return self._read(key, bool, default)

    def optional_integer(self, key: str) -> int | None:
        return self.integer(key) if self.has(key) else None

    def texts(self, key: str) -> list[str]:
        return [str(value) for value in self._read(key, list, None)]

    def integers(self, key: str) -> list[int]:
        return [int(value) for value in self._read(key, list, None)]

    def reals(self, key: str) -> list[float]:
        return [float(value) for value in self._read(key, list, None)]

    def _read(self, key: str, kind: type[T], default: T | None) -> T:
        field = self._reader.get_field(key)
        if field is None:
            if default is None:
                raise ModelDamaged(f"{self.path.name}: the GGUF metadata lack {key}; take another file")
            return default
        value: Any = field.contents()
        if not isinstance(value, kind):
            wanted = f"{kind.__name__}, not {type(value).__name__}"
            raise ModelUnsupported(f"{self.path.name}: the GGUF metadata {key} should be one {wanted}")
        return value


def _open(path: Path) -> gguf.GGUFReader:
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, OSError, UnicodeDecodeError) as error:
        reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        raise ModelDamaged(f"{path} is no readable GGUF file ({reason}); download it again") from error
    if reader.byte_order == "S":
        raise ModelUnsupported(f"{path.name} is stored in the other byte order; convert it to little-endian")
    return reader
