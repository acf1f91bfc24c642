"""A model directory on a CUDA device, and how much KV memory it gets; the device is the tests' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from services.worker.engine.base import LoadedEngine
from services.worker.engine.errors import ModelFormatError, NotEnoughMemory
from services.worker.engine.load import load_engine
from services.worker.engine.settings import EngineSettings
from services.worker.engine.torch import load
from services.worker.engine.torch.config import parse_config
from services.worker.engine.torch.cuda import choice, device, reference
from services.worker.engine.torch.cuda.build import CudaParts, Wish, plain_linear
from services.worker.engine.torch.cuda.device import DeviceMemory
from services.worker.engine.torch.cuda.sizing import kv_budget
from services.worker.engine.torch.kv import bytes_per_block
from services.worker.scheduler.intake import ModelFacts
from services.worker.scheduler.policy import SchedulerSettings
from tests.support.cuda_engine import cuda_runner
from tests.support.drive import Drive
from tests.support.fake_device import FakeDevice
from tests.support.offline import offline, prompt_of, request_of
from tests.support.tiny_llama import TinyLlama, write_tiny_llama

MIB = 1 << 20
SCHEDULER = SchedulerSettings(max_chunk=256)


class Card:
    """What stands in for the machine's GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int = 1 << 30) -> None:
        self.device = FakeDevice(total=total)
        parts = CudaParts("reference", self.device.kernels(reference), plain_linear)
        monkeypatch.setattr(load, "choose_device", lambda settings: torch.device("cuda", 0))
        monkeypatch.setattr(load, "device_name", lambda where: "a card")
        monkeypatch.setattr(load, "device_uuid", lambda where: "GPU-0")
        monkeypatch.setattr(device, "CudaDevice", lambda where: self.device)
        monkeypatch.setattr(choice, "choose_cuda_parts", lambda *_: parts)

    def load(self, model: Path, **settings: Any) -> LoadedEngine:
        return load_engine(
            EngineSettings(model=model, dtype="float32", max_seqs=8, scheduler=SCHEDULER, **settings)
        )


def test_a_loaded_engine_answers_as_the_cpu_does(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Card(monkeypatch).load(tiny_llama)
    told = engine.description
    assert (told.device, told.device_uuid, told.capabilities.run_ahead) == ("a card", "GPU-0", 1)
    assert told.spec == engine.runner.spec
    facts = ModelFacts(told.vocab_size, told.eos_ids, told.numerics_id)
    drives = [Drive(engine.runner, SCHEDULER, facts), offline(tiny_llama, SCHEDULER)]
    for drive in drives:
        drive.add(*(request_of(handle, prompt_of(40 * handle + 9, handle)) for handle in range(6)))
        drive.run()
    assert drives[0].stories[5].tokens
    assert [drives[0].stories[n].tokens for n in range(6)] == [drives[1].stories[n].tokens for n in range(6)]


def test_wrong_weights_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny_llama(tmp_path, TinyLlama(layers=1, tied=False))
    config = model / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 384', '"intermediate_size": 256'))
    with pytest.raises(ModelFormatError) as error:
        Card(monkeypatch).load(model)
    assert "gate_proj.weight has shape [384, 144], config.json implies [256, 144]" in str(error.value)


def test_a_card_too_small_for_the_context_asked_for(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotEnoughMemory, match=r"a context of 2048 tokens needs \d+ MiB of KV memory"):
        Card(monkeypatch, total=30 * MIB).load(tiny_llama, max_context=2048)


def test_kv_memory_is_what_the_largest_step_leaves(tiny_llama: Path) -> None:
    """The same card holds fewer blocks when steps are larger, and never more than fit beside them."""
    blocks = {}
    for step_tokens in (256, 4096):
        card = FakeDevice(total=220 * MIB)
        runner = cuda_runner(tiny_llama, card, Wish(max_seqs=64), step_tokens=step_tokens)
        blocks[step_tokens] = runner.spec.num_blocks
        assert card.measured > 64 * 512 * 4 + step_tokens * 2 * 384 * 4, "logits of all rows, gate and up"
        assert card.used + card.measured < 220 * MIB
    assert 0 < blocks[4096] < blocks[256] < 64 * 32


def test_no_more_blocks_than_all_slots_can_use(tiny_llama: Path) -> None:
    runner = cuda_runner(tiny_llama, FakeDevice(total=1 << 30), Wish(max_seqs=2, max_context=128))
    assert (runner.spec.num_blocks, runner.spec.max_len) == (4, 128)


def test_what_others_have_taken_is_not_there() -> None:
    memory = DeviceMemory(free=60 << 30, total=140 << 30, used=20 << 30, reserved=24 << 30)
    budget = kv_budget(memory, step_peak=3 << 30, graph_peak=1 << 30, graphs=50)
    assert 56 << 30 < budget < 60 << 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_the_size_that_was_counted(tmp_path: Path, dtype: torch.dtype) -> None:
    model = write_tiny_llama(tmp_path)
    used = []
    for blocks in (10, 74):
        card = FakeDevice()
        cuda_runner(model, card, Wish(max_seqs=4, kv_blocks=blocks), dtype=dtype)
        used.append(card.used)
    config = parse_config(json.loads((model / "config.json").read_text()))
    assert used[1] - used[0] == 64 * bytes_per_block(config, 64, dtype)
