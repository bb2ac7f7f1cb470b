"""float16 and bfloat16 rows to float32 and float64 and back: NumPy knows one, slowly, and not the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._lanes import LANES, bits, convert, of_bits, part, put, select, take
from ._run import compiled

Array = NDArray[Any]
HALF, BRAIN = 0, 1


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


@compiled
def _narrow(x: Array, kind: int, out: Array) -> None:
    """x: float32. out: the bits, uint16"""
    for i in range(0, len(x), LANES):
        count = min(LANES, len(x) - i)
        lanes = take(x, i, count)
        put(out, i, count, convert(out, _bits_of_half(lanes) if kind == HALF else _bits_of_brain(lanes)))


@compiled
def _widen(x: Array, kind: int, out: Array, whole: Array) -> None:
    """x: the bits, uint16. out: float32. whole: int32, whose type is wanted"""
    for i in range(0, len(x), LANES):
        count = min(LANES, len(x) - i)
        size = convert(whole, take(x, i, count))
        if kind == HALF:
            number = of_bits((size & 0x7FFF) << 13) * 2.0**112
            number = select((size & 0x7FFF) > 0x7BFF, of_bits(bits(number) | 0x7F800000), number)
            put(out, i, count, of_bits(bits(number) | ((size & 0x8000) << 16)))
        else:
            put(out, i, count, of_bits(size << 16))


def widen(x: Array, out: Array) -> None:
    """Copies floating-point numbers; uint16 stands for bfloat16."""
    if x.dtype not in (np.float16, np.uint16):
        np.copyto(out, x)
        return
    packed = np.ascontiguousarray(x).view(np.uint16).reshape(-1)
    direct = out.dtype == np.float32 and out.flags.c_contiguous
    found = out.reshape(-1) if direct else np.empty(packed.shape, np.float32)
    _widen(packed, HALF if x.dtype == np.float16 else BRAIN, found, np.empty(0, np.int32))
    if not direct:
        np.copyto(out, found.reshape(x.shape))


def narrow(x: Array, out: Array) -> None:
    """The way back."""
    if out.dtype not in (np.float16, np.uint16):
        np.copyto(out, x, casting="same_kind")
        return
    direct = out.flags.c_contiguous
    packed = out.view(np.uint16).reshape(-1) if direct else np.empty(x.size, np.uint16)
    _narrow(np.ascontiguousarray(x, np.float32).reshape(-1), HALF if out.dtype == np.float16 else BRAIN, packed)
    if not direct:
        np.copyto(out, packed.view(out.dtype).reshape(x.shape))
