"""Scalar mathematics for loops that vectorise, as csrc/pixel.h has it: polynomials without a branch for float32, a few
units in the last place; libm for float64. NaN propagates through every function.

To be called by compiled functions; each takes a float32 or float64 and returns the same type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from ._run import _FASTMATH

_F, _I, _U = np.float32, np.int32, np.uint32
_OPTIONS: Any = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
part = njit(error_model="numpy", fastmath=_FASTMATH, **_OPTIONS)  # of a kernel; compiled and kept with it
_TINY, _HUGE, _INF = _F(1.1754944e-38), _F(3.4028234e38), _F(np.inf)


@part
def _exp_negative(x: Any) -> Any:  # Cephes expf
    c = _F(-87.3) if x < _F(-87.3) else x
    shifted = c * _F(1.44269504) + _F(12582912.0)  # 1.5 * 2^23 rounds to an integer in the low bits
    k = shifted - _F(12582912.0)
    r = (c - k * _F(0.693359375)) + k * _F(2.12194440e-4)
    poly = _F(1.9875691500e-4)
    poly = poly * r + _F(1.3981999507e-3)
    poly = poly * r + _F(8.3334519073e-3)
    poly = poly * r + _F(4.1665795894e-2)
    poly = poly * r + _F(1.6666665459e-1)
    poly = poly * r + _F(5.0000001201e-1)
    scale = _U((_F(shifted).view(np.uint32) - _U(0x4B400000 - 127)) << _U(23))
    y = (poly * r * r + r + _F(1)) * _U(scale).view(np.float32)
    return _F(0) if x < _F(-87.3) else y


@part
def _exp(x: Any) -> Any:
    y = _exp_negative(_F(88) if x > _F(88) else x)
    return _INF if x > _F(88) else y


@part
def _log_poly(f: Any, k: Any) -> Any:
    """log((1 + f) 2^k), Cephes logf, |f| < 0.42"""
    poly = _F(7.0376836292e-2)
    poly = poly * f - _F(1.1514610310e-1)
    poly = poly * f + _F(1.1676998740e-1)
    poly = poly * f - _F(1.2420140846e-1)
    poly = poly * f + _F(1.4249322787e-1)
    poly = poly * f - _F(1.6668057665e-1)
    poly = poly * f + _F(2.0000714765e-1)
    poly = poly * f - _F(2.4999993993e-1)
    poly = poly * f + _F(3.3333331174e-1)
    f2 = f * f
    return k * _F(0.693359375) + (f - (_F(0.5) * f2 - f2 * f * poly) - k * _F(2.12194440e-4))


@part
def _log(x: Any) -> Any:
    shifted = _U(_F(x).view(np.uint32) - _U(0x3F3504F3))
    k = _I(_U(shifted).view(np.int32) >> _I(23))
    m = _U((shifted & _U(0x007FFFFF)) + _U(0x3F3504F3))
    y = _log_poly(_U(m).view(np.float32) - _F(1), _F(k))
    return -_INF if x < _TINY else (y if x <= _HUGE else x)


@part
def _log1p(t: Any) -> Any:
    u = _F(1) + t
    shifted = _U(_F(u).view(np.uint32) - _U(0x3F3504F3))
    k = _I(_U(shifted).view(np.int32) >> _I(23))
    m = _U((shifted & _U(0x007FFFFF)) + _U(0x3F3504F3))
    inverse = _U((_I(127) - k) << _I(23))
    f = (_U(m).view(np.float32) - _F(1)) + (t - (u - _F(1))) * _U(inverse).view(np.float32)
    y = _log_poly(t if k == 0 else f, _F(k))
    return t if t > _HUGE else y


@part
def _log1p_unit(t: Any) -> Any:
    high = t > _F(0.41421356)
    f = _F(0.5) * t - _F(0.5) if high else t  # (1 + t) / 2 - 1, exact
    return _log_poly(f, _F(1) if high else _F(0))


def exp_negative(x: Any) -> Any:
    """e^x for x <= 0; float32: 0 below -87.3"""


def exp(x: Any) -> Any:
    """e^x; float32: infinite above 88"""


def log(x: Any) -> Any:
    """log x for x >= 0; float32: -infinity for 0 and subnormal numbers"""


def log1p(t: Any) -> Any:
    """log(1 + t) for t >= 0, full relative accuracy"""


def log1p_unit(t: Any) -> Any:
    """the same for 0 <= t <= 1"""


def power(x: Any, a: Any) -> Any:
    """x^a for x >= 0: 0 at x = 0 whatever a"""


@part
def _power(x: Any, a: Any) -> Any:
    return _exp(a * _log(x)) if x > _F(0) else x * _F(0)


@part
def _double_power(x: Any, a: Any) -> Any:
    return math.pow(x, a) if x > 0.0 else x * 0.0


@part
def _double_log(x: Any) -> Any:
    return math.log(x) if x > 0.0 else (-np.inf if x == 0.0 else x)


def _define(function: Callable[..., Any], single: Any, double: Any) -> None:
    @overload(function, strict=False)  # annotations may differ
    def _(x: Any) -> Callable[[Any], Any]:
        chosen = single if x == types.float32 else double
        return lambda x: chosen(x)


_define(exp_negative, _exp_negative, math.exp)
_define(exp, _exp, math.exp)
_define(log, _log, _double_log)
_define(log1p, _log1p, math.log1p)
_define(log1p_unit, _log1p_unit, math.log1p)


@overload(power, strict=False)
def _(x: Any, a: Any) -> Callable[[Any, Any], Any]:
    chosen = _power if x == types.float32 else _double_power
    return lambda x, a: chosen(x, a)
