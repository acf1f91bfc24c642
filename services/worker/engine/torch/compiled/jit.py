"""What kernels need of the machine: memory by address, bfloat16, exp, a counter that threads share.

Numbers are loaded and stored by address and index, unchecked: an index that numba cannot prove to be positive
would otherwise be checked for wrapping around at each element, which ends vectorisation.
"""

from __future__ import annotations

import hashlib
import shutil
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from services.common.lines import say
from services.worker.engine.torch.compiled.keeping import kept_in

F32 = np.float32
KERNEL = types.void(types.CPointer(types.int64))
BFLOAT16, FLOAT32 = 16, 32  # how a model's numbers lie in memory; kernels compute in fp32
# Sums may be taken in another order and products fused; what is not a number stays so.
_FAST = frozenset({"contract", "reassoc", "nsz", "arcp"})


def kernel(function: Any) -> Any:
    """Compiles a kernel. It closes over numbers only: by these its compiled form is kept for later starts."""
    options = {"fastmath": set(_FAST), "error_model": "numpy", "boundscheck": False}
    if (kept := kept_in()) is not None:
        folder = kept / _name_of(function)  # an index each: processes that share one mix kernels up
        numba.config.CACHE_DIR = str(folder)
        for _ in range(2):
            try:
                return cfunc(KERNEL, cache=True, **options)(function)
            except OSError as error:  # the disk is full
                say(f"a kernel cannot be kept in {folder}: {error}")
                break
            except Exception as error:  # damaged: numba lets all that unpickling raises through
                say(f"compiling again what is damaged in {folder}: {error!r}")
                shutil.rmtree(folder, ignore_errors=True)
    return cfunc(KERNEL, cache=False, **options)(function)


def _name_of(function: Any) -> str:
    """Of the numbers that a kernel closes over, and of this CPU."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    machine = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    return hashlib.sha256(repr((function.__qualname__, cells, machine)).encode()).hexdigest()[:16]


@intrinsic
def next_unit(_typing: Any, args: Any) -> Any:
    """Takes the next unit: fetch-and-add on the first word."""

    def codegen(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", values[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(args), codegen


@intrinsic(prefer_literal=True)
def load(_typing: Any, kind: Any, address: Any, index: Any) -> Any:
    """The number at an index, in fp32; its kind is BFLOAT16 or FLOAT32."""
    stored = _TYPES[kind.literal_value]

    def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        value = builder.load(_element(context, builder, stored, values[1:]))
        return value if stored is types.float32 else _widen(builder, value)

    return types.float32(kind, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def store(_typing: Any, kind: Any, address: Any, index: Any, value: Any) -> Any:
    """Keeps an fp32 number at an index."""
    stored = _TYPES[kind.literal_value]

    def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        number = values[3] if stored is types.float32 else _narrow(builder, values[3])
        builder.store(number, _element(context, builder, stored, values[1:]))
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.int64, types.float32), codegen


def _loader(dtype: Any) -> Any:
    @intrinsic
    def load_integer(_typing: Any, _address: Any, _index: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            return builder.load(_element(context, builder, dtype, values))

        return dtype(types.int64, types.int64), codegen

    return load_integer


@intrinsic
def store_byte(_typing: Any, _address: Any, _index: Any, _value: Any) -> Any:
    """Keeps a uint8 at an index."""

    def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        builder.store(values[2], _element(context, builder, types.uint8, values))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.uint8), codegen


load_i64, load_i32 = _loader(types.int64), _loader(types.int32)
_TYPES = {BFLOAT16: types.uint16, FLOAT32: types.float32}


def _element(context: Any, builder: Any, dtype: Any, place: Any) -> Any:
    address, index = place[:2]
    pointer = builder.inttoptr(address, context.get_value_type(types.CPointer(dtype)))
    return builder.gep(pointer, [index])


def _widen(builder: Any, stored: Any) -> Any:
    word = ir.IntType(32)
    return builder.bitcast(builder.shl(builder.zext(stored, word), ir.Constant(word, 16)), ir.FloatType())


def _narrow(builder: Any, value: Any) -> Any:
    """To the nearest, ties to even. NaN stays NaN: what arithmetic makes of it has no low bits to carry."""
    word = ir.IntType(32)
    bits = builder.bitcast(value, word)
    odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
    rounded = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
    return builder.trunc(builder.lshr(rounded, ir.Constant(word, 16)), ir.IntType(16))


@intrinsic
def _bits_as_f32(_typing: Any, _bits: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), codegen


@njit(inline="always", fastmath=set(_FAST))
def exp(x: Any) -> Any:
    """e^x to about one part in 10^7, between 2^-126 and 2^126; NaN stays NaN. Vectorises, unlike libm's."""
    y = x * F32(1.4426950408889634)
    y = F32(-126.0) if y < F32(-126.0) else y
    y = F32(126.0) if y > F32(126.0) else y
    whole = np.int32(y + (F32(0.5) if y > F32(0.0) else F32(-0.5)))
    part = (y - F32(whole)) * F32(0.6931471805599453)  # within ± ln 2 / 2: seven terms of e^part
    p = F32(1.0 / 720.0)
    p = p * part + F32(1.0 / 120.0)
    p = p * part + F32(1.0 / 24.0)
    p = p * part + F32(1.0 / 6.0)
    p = p * part + F32(0.5)
    p = p * part + F32(1.0)
    p = p * part + F32(1.0)
    return p * _bits_as_f32(np.int32((whole + np.int32(127)) << np.int32(23)))
