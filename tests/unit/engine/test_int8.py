"""int8 products: near the exact ones, the same alone and among neighbours, refused where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from services.worker.engine.errors import EngineLoadError
from services.worker.engine.load import load_engine
from services.worker.engine.settings import EngineSettings
from services.worker.engine.torch import parts
from services.worker.engine.torch.compiled import operators
from services.worker.engine.torch.linear import Int8Linear
from services.worker.engine.torch.operators import Quantised
from services.worker.scheduler.request import Sampling
from tests.support.offline import offline, prompt_of, request_of
from tests.support.tiny_llama import TinyLlama, write_tiny_llama


def by_token(x: torch.Tensor) -> Quantised:
    scales = x.float().abs().amax(-1, keepdim=True) / 127
    return Quantised(((x.float() / scales).round() + 128).to(torch.uint8), scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_within_a_hundredth_or_two(dtype: torch.dtype, biased: bool) -> None:
    torch.manual_seed(3)
    weight, bias = torch.randn(96, 144).to(dtype), torch.randn(96).to(dtype) if biased else None
    x = (torch.randn(9, 144) * torch.logspace(-3, 3, 9).unsqueeze(1)).to(dtype)
    exact = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    product = Int8Linear(weight, bias, quantise=by_token)(x).float()
    errors = (product - exact).norm(dim=1) / exact.norm(dim=1)
    assert (errors < 0.02).all()


def test_a_token_has_the_same_product_alone_and_among_others() -> None:
    torch.manual_seed(3)
    linear = Int8Linear(torch.randn(96, 144), quantise=by_token)
    x = torch.randn(33, 144) * torch.logspace(-3, 3, 33).unsqueeze(1)
    together = linear(x)
    for row in range(33):
        assert torch.equal(linear(x[row : row + 1])[0], together[row])


@pytest.fixture(scope="module", params=["by token", "by group"])
def model(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose matrices are no whole panels of groups, or are."""
    if request.param == "by token":
        return tiny_llama
    return write_tiny_llama(tmp_path_factory.mktemp("whole"), TinyLlama(hidden=128, heads=8, kv_heads=4))


def test_ids_among_neighbours_are_those_alone(model: Path) -> None:
    requests = [
        request_of(handle, prompt_of(5 + 41 * handle % 90, seed=handle), 24, sampling=sampling)
        for handle in range(5)
        for sampling in [Sampling(temperature=1.0, seed=handle, ignore_eos=True)]
    ]
    crowd = offline(model, quantization="int8")
    crowd.add(*requests)
    crowd.run()
    for request in requests:
        alone = offline(model, quantization="int8")
        alone.add(request)
        alone.run()
        assert alone.stories[request.handle].tokens == crowd.stories[request.handle].tokens


def test_answers_stay_close_to_the_exact_ones(model: Path) -> None:
    firsts = []
    for quantization in ("none", "int8"):
        drive = offline(model, quantization=quantization)
        for handle in range(32):
            drive.add(request_of(handle, prompt_of(40, seed=handle), 1))
        drive.run()
        firsts.append(np.array([drive.stories[handle].tokens[0] for handle in range(32)]))
    assert (firsts[0] == firsts[1]).mean() >= 0.75


def test_numerics_tell_products_by_group_from_those_by_token(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EngineSettings(model=tiny_llama, device="cpu", quantization="int8", kv_blocks=4, threads=1)
    ids = set()
    for grouped in (False, True):
        monkeypatch.setattr(operators, "can_multiply_int8", lambda grouped=grouped: grouped)
        ids.add(load_engine(settings).description.numerics_id)
    assert len(ids) == 2


def test_int8_is_refused_where_there_are_no_such_products(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "can_quantise", lambda: False)
    with pytest.raises(EngineLoadError, match="int8 is not to be had on cpu"):
        offline(tiny_llama, quantization="int8")
