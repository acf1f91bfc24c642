"""From settings to a simulated engine. Needs config.json and tokenizer.json, or a calibration alone."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from typing import Any

import numpy as np

from services.common.models import ModelDirectory, ModelError
from services.worker.engine.base import EngineDescription, LoadedEngine
from services.worker.engine.calibrate import calibrate
from services.worker.engine.errors import EngineLoadError, ModelFormatError
from services.worker.engine.settings import EngineSettings
from services.worker.engine.simulated.answers import Answers
from services.worker.engine.simulated.calibration import NULL_FORWARD, Calibration, read_calibration
from services.worker.engine.simulated.clock import Clock, RealClock, VirtualClock
from services.worker.engine.simulated.faults import Faults, Saboteur
from services.worker.engine.simulated.runner import SimulatedRunner
from services.worker.scheduler.budget import PRIOR, StepModelState
from services.worker.scheduler.request import Ids
from services.worker.scheduler.step import Capabilities, KVSpec

VERSION = "1"  # goes up when the same seed gives other answers
BLOCK_TOKENS = 64
CAPABILITIES = Capabilities(run_ahead=1, deterministic=True)


def load_simulated_engine(settings: EngineSettings, clock: Clock | None = None) -> LoadedEngine:
    """A simulated engine in real time, or in that of `clock`. Raises EngineLoadError."""
    started = time.monotonic()
    given = settings.simulated_calibration
    calibration = NULL_FORWARD if given is None else read_calibration(given)
    directory = ModelDirectory(settings.model, settings.model_name or settings.model.name)
    try:
        eos_ids, calibration = _facts(directory, calibration, needed=given is None)
        words = _words(directory, calibration.vocab_size, eos_ids)
    except ModelError as error:
        raise ModelFormatError(str(error)) from error
    spec = _spec(settings, calibration)
    seed = settings.simulated_seed
    answers = Answers(words, eos_ids[0] if eos_ids else None, seed, settings.simulated_answer_tokens)
    runner = SimulatedRunner(
        spec,
        CAPABILITIES,
        calibration.step,
        answers,
        clock or RealClock(),
        Saboteur(_faults(settings)),
        noise=settings.simulated_noise,
        seed=seed,
    )
    description = _describe(settings, directory.name, calibration, eos_ids, words, spec)
    described = replace(description, load_seconds=time.monotonic() - started)
    return LoadedEngine(runner, described, prior=_known_cost(spec, calibration, answers))


def _known_cost(spec: KVSpec, calibration: Calibration, answers: Answers) -> StepModelState:
    """What a sweep would find, without the time and the faults of one."""
    if calibration.step == NULL_FORWARD.step:
        return PRIOR
    clock = VirtualClock()
    twin = SimulatedRunner(spec, CAPABILITIES, calibration.step, answers, clock, Saboteur(Faults()))
    return calibrate(twin, clock=clock.now)


def _facts(
    directory: ModelDirectory, calibration: Calibration, *, needed: bool
) -> tuple[tuple[int, ...], Calibration]:
    """End ids, and the calibration with vocabulary and context of config.json where there is one."""
    if not needed and not (directory.path / "config.json").is_file():
        return () if calibration.eos_id is None else (calibration.eos_id,), calibration
    known = replace(calibration, vocab_size=directory.vocab_size, context_length=directory.context_length)
    return directory.eos_ids, known


def _words(directory: ModelDirectory, vocab_size: int, eos_ids: tuple[int, ...]) -> Ids:
    """Ids that an answer may consist of: of the tokenizer's vocabulary, none of its special tokens."""
    known = set(range(vocab_size))
    if directory.tokenizer_path.is_file():
        known &= _tokenizer_ids(directory)
    words = np.array(sorted(known.difference(eos_ids)), np.int32)
    if len(words) == 0:
        raise ModelFormatError(f"{directory.path} has no token that is none of its end ids")
    return words


def _tokenizer_ids(directory: ModelDirectory) -> set[int]:
    try:
        parsed: dict[str, Any] = json.loads(directory.tokenizer_json)
        vocabulary = parsed["model"]["vocab"]
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        return set(ids).difference(added["id"] for added in parsed.get("added_tokens", ()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFormatError(
            f"{directory.tokenizer_path} is not of the expected form: {error!r}"
        ) from error


def _spec(settings: EngineSettings, calibration: Calibration) -> KVSpec:
    blocks = settings.kv_blocks or calibration.kv_tokens // BLOCK_TOKENS
    length = min(settings.max_context or calibration.context_length, blocks * BLOCK_TOKENS)
    if length < 2:
        raise EngineLoadError(f"{blocks} KV blocks hold no sequence; raise kv_blocks")
    return KVSpec(block_size=BLOCK_TOKENS, num_blocks=blocks, max_seqs=settings.max_seqs, max_len=length)


def _faults(settings: EngineSettings) -> Faults:
    return Faults(
        die_at_token=settings.simulated_die_at_token,
        hang_at_token=settings.simulated_hang_at_token,
        slow_after_steps=settings.simulated_slow_after_steps,
        slow_factor=settings.simulated_slow_factor,
    )


def _describe(
    settings: EngineSettings,
    model: str,
    calibration: Calibration,
    eos_ids: tuple[int, ...],
    words: Ids,
    spec: KVSpec,
) -> EngineDescription:
    said = f"{settings.simulated_seed} {settings.simulated_answer_tokens} {eos_ids}".encode()
    weights = hashlib.sha256(b"headrace-simulated-v1\0" + VERSION.encode() + b"\0" + said + words.tobytes())
    return EngineDescription(
        model=model,
        engine="simulated",
        engine_version=VERSION,
        device=f"simulated {calibration.device}",
        dtype=calibration.dtype,
        vocab_size=calibration.vocab_size,
        eos_ids=eos_ids,
        context_length=spec.max_len,
        parameters=calibration.parameters,
        weights_bytes=calibration.weights_bytes,
        weights_digest=weights.digest(),
        numerics_id=hashlib.sha256(b"numerics\0" + weights.digest()).digest(),
        spec=spec,
        capabilities=CAPABILITIES,
        load_seconds=0.0,
    )
