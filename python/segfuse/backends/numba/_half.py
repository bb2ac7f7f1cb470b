"""float16 and bfloat16 to float32 and float64 and back: NumPy knows one, slowly, and not the other.

Kernels see their bits: those of float16 as int16, those of bfloat16 as uint16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from ._lanes import LANES, bits, convert, of_bits, part, put, select, take, widened
from ._run import compiled

Array = NDArray[Any]


@part
def _bits_of_half(x: Any) -> Any:
    """Rounded to the nearest, to even where two are near; NaN stays. x: float32 lanes."""
    sign = (bits(x) >> 16) & 0x8000
    size = bits(x) & 0x7FFFFFFF
    small = bits(of_bits(size) + 0.5) - 0x3F000000  # below 2^-14 the sum has the step of a subnormal number
    usual = (size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13
    found = select(size < 0x38800000, small, usual)
    found = select(size > 0x477FFFFF, 0x7C00, found)
    return sign | select(size > 0x7F800000, 0x7E00, found)


@part
def _bits_of_brain(x: Any) -> Any:
    size = bits(x)
    found = ((size + 0x7FFF + ((size >> 16) & 1)) >> 16) & 0xFFFF
    return select(x == x, found, 0x7FC0)


@part
def _half(x: Any) -> Any:
    number = of_bits((x & 0x7FFF) << 13) * 2.0**112
    number = select((x & 0x7FFF) > 0x7BFF, of_bits(bits(number) | 0x7F800000), number)
    return of_bits(bits(number) | ((x & 0x8000) << 16))


@part
def _brain(x: Any) -> Any:
    return of_bits(x << 16)


def take_number(x: Any, at: int, count: int) -> Any:
    """The first ``count`` floating-point lanes from ``x[at]`` on, 0 in the others."""


@overload(take_number, strict=False)
def _(x: Any, at: Any, count: Any) -> Callable[..., Any]:
    if x.dtype == types.int16:
        return lambda x, at, count: _half(widened(take(x, at, count)))
    if x.dtype == types.uint16:
        return lambda x, at, count: _brain(widened(take(x, at, count)))
    return lambda x, at, count: take(x, at, count)


def put_number(out: Any, at: int, count: int, lanes: Any) -> None:
    """Stores the first ``count`` lanes, rounded."""


@overload(put_number, strict=False)
def _(out: Any, at: Any, count: Any, lanes: Any) -> Callable[..., Any]:
    if out.dtype == types.int16:
        return lambda out, at, count, lanes: put(out, at, count, convert(out, _bits_of_half(lanes)))
    if out.dtype == types.uint16:
        return lambda out, at, count, lanes: put(out, at, count, convert(out, _bits_of_brain(lanes)))
    return lambda out, at, count, lanes: put(out, at, count, lanes)


@compiled
def _convert(x: Array, out: Array) -> None:
    """One of both is float32."""
    for i in range(0, len(x), LANES):
        count = min(LANES, len(x) - i)
        put_number(out, i, count, take_number(x, i, count))


def _bits(x: Array) -> Array:
    return x.view(np.int16) if x.dtype == np.float16 else x


def widen(x: Array, out: Array) -> None:
    """Copies floating-point numbers; uint16 stands for bfloat16."""
    if x.dtype not in (np.float16, np.uint16):
        np.copyto(out, x)
        return
    packed = _bits(np.ascontiguousarray(x)).reshape(-1)
    direct = out.dtype == np.float32 and out.flags.c_contiguous
    found = out.reshape(-1) if direct else np.empty(packed.shape, np.float32)
    _convert(packed, found)
    if not direct:
        np.copyto(out, found.reshape(x.shape))


def narrow(x: Array, out: Array) -> None:
    """The way back."""
    if out.dtype not in (np.float16, np.uint16):
        np.copyto(out, x, casting="same_kind")
        return
    direct = out.flags.c_contiguous
    packed = _bits(out).reshape(-1) if direct else np.empty(x.size, _bits(out[:0]).dtype)
    _convert(np.ascontiguousarray(x, np.float32).reshape(-1), packed)
    if not direct:
        np.copyto(out, packed.view(out.dtype).reshape(x.shape))
