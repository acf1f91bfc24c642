"""GGUF to a Hugging Face directory, once.

The weights are dequantised to float32 and stored as bf16, rounded to nearest even: GGUF quantisations
carry at most eight bits a value, and one stored dtype means that transformers and every engine of ours
read exactly the same numbers, whether they compute in bf16 or widen to fp32.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.models.gguf_config import architecture_of, generation_config, model_config
from services.common.models.gguf_metadata import GgufFile
from services.common.models.gguf_tensors import SourceTensor, pieces, source_tensors
from services.common.models.gguf_tokenizer import tokenizer_config, tokenizer_of
from services.common.models.progress import Progress, stage
from services.common.models.safetensors_file import write_bf16_file


def convert(source: Path, target: Path, progress: Progress) -> None:
    """Write the model in the GGUF file `source` into the existing directory `target`.

    What is unsupported is found before the first weight is written.

    Raises:
        ModelDamaged: `source` is no readable GGUF file.
        ModelUnsupported: an architecture, tokenizer or tensor type that is not known here.
        OSError: `target` cannot be written.
    """
    with stage(progress, f"reading {source.name}"):
        file = GgufFile(source)
        architecture_of(file)
        _write_texts(file, target)
    _write_weights(file, target / "model.safetensors", progress)


def _write_texts(file: GgufFile, target: Path) -> None:
    _write_json(target / "config.json", model_config(file))
    _write_json(target / "generation_config.json", generation_config(file))
    _write_json(target / "tokenizer_config.json", tokenizer_config(file))
    tokenizer_of(file).save(str(target / "tokenizer.json"), pretty=False)


def _write_weights(file: GgufFile, path: Path, progress: Progress) -> None:
    sources = source_tensors(file)
    plans = [source.plan for source in sources]
    with stage(progress, f"converting {file.path.name}", sum(plan.num_bytes for plan in plans)):
        for written_bytes in write_bf16_file(path, plans, _all_pieces(sources), {"format": "pt"}):
            progress.advance(written_bytes)


def _all_pieces(sources: list[SourceTensor]) -> Iterator[NDArray[np.float32]]:
    for source in sources:
        yield from pieces(source)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
