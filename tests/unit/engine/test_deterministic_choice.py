"""Which engines say that ids do not depend on neighbours, and what becomes of those that cannot."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from services.worker.engine.base import EngineDescription
from services.worker.engine.errors import EngineLoadError
from services.worker.engine.load import load_engine
from services.worker.engine.settings import EngineSettings
from services.worker.engine.torch.compiled import operators
from services.worker.engine.torch.compiled.product import can_multiply
from tests.support.tiny_llama import TinyLlama, write_tiny_llama


def described(model: Path, **settings: Any) -> EngineDescription:
    made: dict[str, Any] = {"device": "cpu", "kv_blocks": 4, "max_seqs": 2, "threads": 1, **settings}
    loaded = load_engine(EngineSettings(model=model, **made))
    loaded.runner.close()
    return loaded.description


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A feed-forward of odd width: inputs make no pairs."""
    return write_tiny_llama(tmp_path, TinyLlama(ffn=383))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Matrices that are whole panels."""
    return write_tiny_llama(tmp_path, TinyLlama(hidden=128, heads=8, kv_heads=4))


@pytest.fixture
def no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that torch's products serve better."""
    monkeypatch.setattr(operators, "can_multiply", lambda _kind: False)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_asked_for_it_every_cpu_has_it(
    tiny_llama: Path, no_products: None, dtype: str, quantization: str
) -> None:
    settings = {"dtype": dtype, "quantization": quantization, "deterministic": True}
    assert described(tiny_llama, **settings).capabilities.deterministic


def test_products_of_torch_are_not_said_to_be_deterministic(tiny_llama: Path, no_products: None) -> None:
    assert not described(tiny_llama, dtype="float32").capabilities.deterministic
    assert described(tiny_llama, dtype="float32", quantization="int8").capabilities.deterministic


@pytest.mark.skipif(not can_multiply(), reason="this CPU has no AVX512-BF16")
def test_our_products_are_so_unasked_and_asking_changes_nothing(whole: Path) -> None:
    unasked = described(whole, dtype="bfloat16")
    assert unasked.capabilities.deterministic
    assert described(whole, dtype="bfloat16", deterministic=True).numerics_id == unasked.numerics_id


def test_numerics_tell_our_products_from_those_of_torch(tiny_llama: Path, no_products: None) -> None:
    alike = {"dtype": "float32"}
    asked = described(tiny_llama, **alike, deterministic=True).numerics_id
    assert asked != described(tiny_llama, **alike).numerics_id


def test_sizes_that_no_kernel_has_are_refused_only_when_it_is_asked_for(odd: Path) -> None:
    assert not described(odd, dtype="bfloat16").capabilities.deterministic
    with pytest.raises(EngineLoadError, match="deterministic ids are not to be had on cpu"):
        described(odd, dtype="bfloat16", deterministic=True)


def test_without_kernels_of_our_own_it_is_refused(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "numba" else find(name, *more)
    )
    with pytest.raises(EngineLoadError, match="deterministic ids are not to be had on cpu"):
        described(tiny_llama, dtype="float32", deterministic=True)


def test_fp8_is_refused_on_a_cpu(tiny_llama: Path) -> None:
    with pytest.raises(EngineLoadError, match="fp8 is not to be had on cpu"):
        described(tiny_llama, quantization="fp8")
