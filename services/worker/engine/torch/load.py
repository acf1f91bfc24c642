"""From settings to a runner that is ready: device, dtype, weights, memory, description."""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from services.common.lines import say
from services.common.models import ModelDirectory, ModelError
from services.worker.engine.base import EngineDescription, LoadedEngine, Runner
from services.worker.engine.errors import EngineLoadError, ModelFormatError, NotEnoughMemory
from services.worker.engine.grammar import Vocabulary
from services.worker.engine.settings import EngineSettings
from services.worker.engine.torch.config import ModelConfig, parse_config
from services.worker.engine.torch.memory import choose_spec, longest_context, usable_cpus
from services.worker.engine.torch.model import Llama
from services.worker.engine.torch.parts import choose_parts
from services.worker.engine.torch.runner import TorchRunner
from services.worker.engine.torch.weights import open_weights
from services.worker.scheduler.step import Capabilities

_DTYPES = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def load_torch_engine(settings: EngineSettings) -> LoadedEngine:
    """Load a model directory. Raises EngineLoadError: one line that says what to change."""
    started = time.monotonic()
    device, dtype = choose_device(settings), _DTYPES[settings.dtype]
    if device.type == "cpu":
        torch.set_num_threads(settings.threads or usable_cpus())
    directory = ModelDirectory(settings.model, settings.model_name or settings.model.name)
    try:
        config = parse_config(directory.config)
        if not directory.weight_files:
            raise ModelFormatError(f"{settings.model} has no *.safetensors; weights are loaded from there")
        digest = _beside(lambda: directory.weights_digest)
        vocabulary = vocabulary_of(directory, config)
        make = _on_cuda if device.type == "cuda" else _on_cpu
        runner, operators = make(
            settings, directory.weight_files, config, dtype, device, grammar=vocabulary is not None
        )
        weights_digest = digest.result()
    except ModelError as error:
        raise ModelFormatError(str(error)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise NotEnoughMemory(f"{directory.name} does not fit on {device}; lower kv_memory_bytes") from error
    parameters = count_parameters(config)
    description = EngineDescription(
        model=directory.name,
        engine="torch",
        engine_version=str(torch.__version__),  # a plain one: the worker reads it without torch
        device=device_name(device),
        device_uuid=device_uuid(device),
        dtype=dtype_name(dtype) if settings.quantization == "none" else settings.quantization,
        vocab_size=config.vocab_size,
        eos_ids=directory.eos_ids,
        context_length=runner.spec.max_len,
        parameters=parameters,
        weights_bytes=weights_bytes(config, dtype, settings.quantization, device),
        weights_digest=weights_digest,
        numerics_id=numerics_id(weights_digest, dtype, device, settings.quantization, operators),
        spec=runner.spec,
        capabilities=runner.capabilities,
        load_seconds=time.monotonic() - started,
    )
    return LoadedEngine(runner, description, vocabulary)


def vocabulary_of(directory: ModelDirectory, config: ModelConfig) -> Vocabulary | None:
    """What grammars are matched against; None, and a line about it, where the tokenizer is not fit for it."""
    try:
        return Vocabulary.load(directory.tokenizer_path, config.vocab_size, directory.eos_ids)
    except (OSError, ValueError) as error:
        say(f"no structured output with {directory.name}: {error}")
        return None


def choose_device(settings: EngineSettings) -> torch.device:
    """The device that the settings name. Raises EngineLoadError where there is none."""
    there = torch.cuda.is_available()
    if settings.device == "cpu" or (settings.device == "auto" and not there):
        return torch.device("cpu")
    if not there:
        raise EngineLoadError("device cuda was asked for and none is to be had; use device auto or cpu")
    if settings.device_index >= torch.cuda.device_count():
        raise EngineLoadError(
            f"CUDA device {settings.device_index} was asked for, there are {torch.cuda.device_count()}"
        )
    return torch.device("cuda", settings.device_index)


def device_name(device: torch.device) -> str:
    """For people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} {'thread' if threads == 1 else 'threads'}"


def device_uuid(device: torch.device) -> str | None:
    """Of the GPU or MIG instance, as CUDA says it; None for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def dtype_name(dtype: torch.dtype) -> str:
    """bfloat16, float32."""
    return str(dtype).removeprefix("torch.")


def numerics_id(
    weights_digest: bytes, dtype: torch.dtype, device: torch.device, quantization: str, operators: str
) -> bytes:
    """Digest of all that must be equal for bit-equal results (DESIGN §2)."""
    engine = f"torch {torch.__version__} {device.type} {operators}"
    fields = (b"headrace-numerics-v2", weights_digest, *map(str.encode, (str(dtype), quantization, engine)))
    framed = b"".join(len(field).to_bytes(8, "little") + field for field in fields)
    return hashlib.sha256(framed).digest()


def count_parameters(config: ModelConfig) -> int:
    """Weights of the model; a tied embedding counts once."""
    attention = config.hidden * (config.qkv_rows + config.heads * config.head_dim)
    layer = attention + 3 * config.hidden * config.ffn + 2 * config.hidden
    embeddings = math.prod((1 if config.tied else 2, config.vocab_size, config.hidden))
    return config.layers * layer + embeddings + config.hidden


def weights_bytes(config: ModelConfig, dtype: torch.dtype, quantization: str, device: torch.device) -> int:
    """Bytes of the weights as held: products in 8 bits leave the embedding as it is, on CUDA logits too."""
    parameters, embedding = count_parameters(config), config.vocab_size * config.hidden
    if quantization == "none":
        return parameters * dtype.itemsize
    layers = parameters - embedding * (1 if config.tied else 2)
    if device.type == "cuda":
        return layers + (parameters - layers) * dtype.itemsize
    return layers + embedding + embedding * dtype.itemsize


class _Made(NamedTuple):
    runner: Runner
    operators: str  # their name


def _on_cpu(
    settings: EngineSettings,
    paths: tuple[Path, ...],
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    grammar: bool,
) -> _Made:
    spec = choose_spec(settings, config, dtype)
    parts = choose_parts(
        config, spec, dtype, device, settings.quantization, deterministic=settings.deterministic
    )
    capabilities = Capabilities(deterministic=parts.deterministic, grammar=grammar)
    with torch.inference_mode(), open_weights(paths, dtype=dtype, device=device) as weights:
        model = Llama(config, weights, parts.operators, parts.make_linear)
    return _Made(TorchRunner(model, config, spec, capabilities, dtype=dtype, device=device), parts.name)


def _on_cuda(
    settings: EngineSettings,
    paths: tuple[Path, ...],
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    grammar: bool,
) -> _Made:
    from services.worker.engine.torch.cuda.choice import Wanted, choose_cuda_parts
    from services.worker.engine.torch.cuda.device import CudaDevice
    from services.worker.engine.torch.cuda.load import load_cuda_runner

    wanted = Wanted(settings.quantization, settings.attention, settings.deterministic)
    card = CudaDevice(device)
    parts = choose_cuda_parts(config, longest_context(settings, config), dtype, device, wanted)
    runner = load_cuda_runner(
        paths,
        config,
        parts,
        settings,
        device=card,
        dtype=dtype,
        step_tokens=settings.scheduler.max_chunk,
        grammar=grammar,
    )
    return _Made(runner, parts.name)


def _beside(work: Callable[[], bytes]) -> Future[bytes]:
    """Have a thread do what neither needs Python nor is needed at once: hashing reads all weights."""
    thread = ThreadPoolExecutor(1, "beside-load")
    try:
        return thread.submit(work)
    finally:
        thread.shutdown(wait=False)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
