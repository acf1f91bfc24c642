"""Random-weight models are whole directories: engines load them, each id has a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.shapes import SHAPES, tokenizer_of, write_model
from services.common.models import ModelDirectory
from services.worker.engine.settings import EngineSettings
from services.worker.engine.torch.load import load_torch_engine

SMALL = SHAPES["1m"]


def test_our_engine_loads_a_model_of_known_shape(tmp_path: Path) -> None:
    write_model(tmp_path, SMALL)
    ModelDirectory(tmp_path, "small").check(weights=True)
    engine = load_torch_engine(EngineSettings(model=tmp_path, kv_blocks=8, device="cpu"))
    assert engine.description.parameters == SMALL.parameters
    assert engine.description.vocab_size == SMALL.vocab
    engine.runner.close()


def test_same_seed_gives_the_same_weights_and_another_gives_others(tmp_path: Path) -> None:
    digests = [
        ModelDirectory(write_model(tmp_path / str(number), SMALL, seed), "small").weights_digest
        for number, seed in enumerate((1, 1, 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_sixty_million_llama_has_that_many_weights() -> None:
    assert SHAPES["60m"].parameters == pytest.approx(58e6, rel=0.01)


def test_each_id_has_a_text_and_each_text_its_ids() -> None:
    tokenizer = tokenizer_of(32_000)
    assert tokenizer.get_vocab_size() == 32_000
    assert all(tokenizer.decode([number]) for number in range(3 + 256, 32_000))
    text = "The wheel turns; Größe, 日本語 🎡 def f(x): return 1"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_vocabulary_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="out of range"):
        tokenizer_of(100_000)
