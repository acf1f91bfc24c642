"""Which attention a model gets on this device: tried for right numbers, timed once, the quickest of a kind.

Ours stays where none is clearly quicker: it is captured, tested, and the same on all cards.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from services.worker.engine.errors import EngineLoadError
from services.worker.engine.torch.cuda import reference
from services.worker.engine.torch.cuda.attention import (
    Alternative,
    Attention,
    AttentionShape,
    OwnAttention,
)
from services.worker.engine.torch.cuda.attention.others import (
    FlashInferAttention,
    GatheredAttention,
    Unavailable,
    VarlenAttention,
)
from services.worker.engine.torch.cuda.attention.trial import POOL_TOKENS, Timer, Trial, time_on_device

if TYPE_CHECKING:
    from services.worker.engine.settings import AttentionKind

SECONDS = 1.0  # that all timings take together, compilation left out
_CLEARLY = 0.95  # times ours must be at most: within noise, and for what a captured launch saves, ours stays
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of averages of unit normals

Candidates = Callable[[], Iterator["Alternative | Left"]]


class Left(NamedTuple):
    """An alternative that is left out."""

    name: str
    reason: str


class Kind(NamedTuple):
    """Steps that one alternative computes."""

    name: str
    captured: bool
    cases: tuple[tuple[tuple[int, int], ...], ...]  # each of rows of (queries, context)


KINDS = (
    Kind("decode", True, (((1, 1024),) * 64, ((1, 8192),) * 8, ((1, 32768),))),
    Kind("mixed", True, ((*((1, 1024),) * 31, (480, 2048)), ((512, 8192),))),
    Kind("eager", False, (((2048, 8192),), ((4096, 32768),))),
)
_RIGHT = ((1, 70), (5, 130), (1, 64), (33, 33), (2, 65))  # rows of the trial for right numbers


class Choice(NamedTuple):
    """What was chosen, and why: for one line of the log."""

    attention: Attention
    times: dict[str, dict[str, float]]  # milliseconds, by kind and alternative
    left: tuple[Left, ...]

    def __str__(self) -> str:
        kinds = zip(
            self.times, (self.attention.decode, self.attention.mixed, self.attention.eager), strict=False
        )
        parts = [f"{kind} {chosen.name}{_measured(self.times[kind])}" for kind, chosen in kinds]
        parts += [f"without {each.name}: {each.reason}" for each in self.left]
        return "attention: " + "; ".join(parts or [self.attention.name])


def choose_attention(
    shape: AttentionShape,
    kernels: Any,
    wanted: AttentionKind = "auto",
    *,
    deterministic: bool = False,
    candidates: Candidates | None = None,
    timer: Timer | None = None,
) -> Choice:
    """The attention of a model. kernels: the module with ours.

    Raises EngineLoadError, one line, for a wish that cannot be had.
    """
    own = OwnAttention(kernels)
    if wanted == "triton" or (deterministic and wanted == "auto"):
        return Choice(Attention(own), {}, ())
    if deterministic:
        raise EngineLoadError(
            f"attention {wanted} is not deterministic; use triton, or leave deterministic out"
        )
    tried = [*_tried(shape, kernels, [own, *_others(shape, wanted, candidates)])]
    left = tuple(each for each in tried if isinstance(each, Left))
    right = [each for each in tried if not isinstance(each, Left)]
    if wanted != "auto":
        return Choice(_as_wanted(wanted, right, left), {}, left)
    return _quickest(shape, kernels, right, left, timer or time_on_device)


def available(shape: AttentionShape, *, compile_too: bool = False) -> Iterator[Alternative | Left]:
    """The alternatives to ours. compile_too: flashinfer may compile its kernels, which takes minutes."""
    makers = (
        ("flashinfer", lambda: _flashinfer(shape, compile_too=compile_too)),
        ("varlen", lambda: VarlenAttention(importlib.import_module("torch.nn.attention.varlen"))),
        ("sdpa", lambda: GatheredAttention(shape)),
    )
    for name, make in makers:
        try:
            yield make()
        except ImportError:
            yield Left(name, "not installed")
        except Exception as error:  # others' code: whatever it raises, ours is there
            yield Left(name, _line(error))


def _flashinfer(shape: AttentionShape, *, compile_too: bool) -> FlashInferAttention:
    module = importlib.import_module("flashinfer")
    backend = "auto" if compile_too else _compiled_backend(shape)
    if backend is None:
        raise Unavailable("its kernels are not compiled yet, attention flashinfer does that once")
    return FlashInferAttention(module, shape, backend=backend)


def _compiled_backend(shape: AttentionShape) -> str | None:
    """Which of flashinfer's kernels for this shape are on disk: those for Hopper before the others."""
    jit = importlib.import_module("flashinfer.jit")
    options = (shape.dtype, shape.dtype, shape.dtype, torch.int32, shape.head_dim, shape.head_dim, 0)
    hopper = shape.device.type == "cuda" and torch.cuda.get_device_capability(shape.device)[0] == 9
    built = [
        library.parent.name
        for place in (jit.env.FLASHINFER_JIT_DIR, jit.env.FLASHINFER_AOT_DIR)
        for library in place.glob("*/*.so")
    ]
    for backend in ("fa3", "fa2") if hopper else ("fa2",):
        uri = jit.get_batch_prefill_uri(backend, *options, False, False, False)
        if any(name.startswith(uri) and ("_sm90" in name) == (backend == "fa3") for name in built):
            return backend
    return None


def _others(
    shape: AttentionShape, wanted: AttentionKind, candidates: Candidates | None
) -> Iterator[Alternative | Left]:
    found = candidates() if candidates else available(shape, compile_too=wanted == "flashinfer")
    return (each for each in found if wanted in ("auto", each.name))


def _tried(
    shape: AttentionShape, kernels: Any, candidates: Sequence[Alternative | Left]
) -> Iterator[Alternative | Left]:
    """Those that compute a small batch as the reference does, and why the others are left out."""
    trial = Trial(shape, kernels, _RIGHT, seed=7)
    wanted = torch.empty_like(trial.out)
    reference.attend(
        trial.query, trial.pool, trial.rows, trial.tables, wanted, trial.workspace,
        scale=shape.scale, block_size=shape.block_size,
    )  # fmt: skip
    for each in candidates:
        fault = None if isinstance(each, Left) else _fault_of(each, trial, wanted)
        yield each if fault is None else Left(each.name, fault)


def _fault_of(candidate: Alternative, trial: Trial, wanted: torch.Tensor) -> str | None:
    trial.out.fill_(math.nan)
    try:
        candidate.plan(trial.host, trial.tables)
        trial.launch(candidate)
    except Exception as error:  # others' code, and compilers
        return _line(error)
    off, allowed = float((trial.out.float() - wanted.float()).abs().max()), _TOLERANCE[wanted.dtype]
    return None if off <= allowed else f"wrong by {off:.3g}, {allowed:g} is allowed"


def _as_wanted(wanted: AttentionKind, right: Sequence[Alternative], left: Sequence[Left]) -> Attention:
    """The wanted one where it can be, ours elsewhere."""
    found = next((each for each in right if each.name == wanted), None)
    if found is None:
        reason = next((each.reason for each in left if each.name == wanted), "unknown")
        raise EngineLoadError(f"attention {wanted} is not to be had: {reason}; use auto")
    own = next((each for each in right if each.name == OwnAttention.name), None)
    if found.captures or found.name == GatheredAttention.name or own is None:
        return Attention(found)
    return Attention(own, own, found)


def _quickest(
    shape: AttentionShape,
    kernels: Any,
    right: Sequence[Alternative],
    left: Sequence[Left],
    timer: Timer,
) -> Choice:
    if not right:
        reasons = "; ".join(f"{each.name} {each.reason}" for each in left)
        raise EngineLoadError(f"no attention works on {shape.device}: {reasons}")
    times: dict[str, dict[str, float]] = {}
    chosen: list[Alternative] = []
    for kind in KINDS:
        fit = _fit(kind, right)
        times[kind.name] = _times(shape, kernels, kind, fit, timer) if len(fit) > 1 else {}
        chosen.append(_best(fit, times[kind.name]))
    return Choice(Attention(*chosen), times, tuple(left))


def _fit(kind: Kind, right: Sequence[Alternative]) -> Sequence[Alternative]:
    """What can be captured where that matters; what gathers only where there is nothing else."""
    quick = [each for each in right if not isinstance(each, GatheredAttention)]
    captured = [each for each in quick if each.captures]
    return (captured if kind.captured and captured else quick) or right


def _times(
    shape: AttentionShape, kernels: Any, kind: Kind, candidates: Sequence[Alternative], timer: Timer
) -> dict[str, float]:
    """Milliseconds over all cases of a kind that fit into a context."""
    longest = min(shape.width * shape.block_size, POOL_TOKENS)
    cases = [case for case in kind.cases if max(context for _, context in case) <= longest]
    share = SECONDS / (len(KINDS) * max(1, len(cases)) * len(candidates))
    totals = dict.fromkeys((each.name for each in candidates), 0.0)
    for case in cases:
        trial = Trial(shape, kernels, case)
        for each in candidates:
            each.plan(trial.host, trial.tables)
            totals[each.name] += 1e3 * timer(partial(trial.launch, each), share)
    return totals


def _best(candidates: Sequence[Alternative], times: dict[str, float]) -> Alternative:
    """The first is ours, if it is there."""
    first = candidates[0]
    quickest = min(candidates, key=lambda each: times.get(each.name, 0.0))
    return quickest if times and times[quickest.name] < _CLEARLY * times[first.name] else first


def _measured(times: dict[str, float]) -> str:
    return f" ({', '.join(f'{name} {value:.3f} ms' for name, value in times.items())})" if times else ""


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
