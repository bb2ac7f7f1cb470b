"""Rows of numbers that stay in cache: what pixel_stats does to some hundred pixels at once.

``s[row, i]`` is number i of a row. Each function walks whole rows in one loop that vectorises, if the row ``out`` is
none of the others: what works in place says so by having no other. A kernel is a list of such steps; they are compiled
with it, once for float32 and once for float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ._math import exp, exp_negative, log, log1p, log1p_unit, power
from ._run import _FASTMATH

_OPTIONS: Any = {"error_model": "numpy", "_nrt": False}  # nothing is allocated: no reference is counted
_PART: Any = _OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
kernel = njit(nogil=True, cache=True, fastmath=_FASTMATH, **_OPTIONS)  # what Python calls
step = njit(fastmath=_FASTMATH, **_PART)  # what a kernel calls
adding = njit(fastmath=_FASTMATH | {"reassoc"}, **_PART)  # over the lanes of a register, always alike


@step
def fill(s: Any, out: int, value: Any, n: int) -> None:
    for i in range(n):
        s[out, i] = value


@step
def read(s: Any, out: int, x: Any, sample: int, c: int, at: int, n: int) -> None:
    row = x[sample, c, at : at + n]
    for i in range(n):
        s[out, i] = row[i]


@step
def write(s: Any, row: int, x: Any, sample: int, c: int, at: int, n: int) -> None:
    out = x[sample, c, at : at + n]
    for i in range(n):
        out[i] = s[row, i]


@step
def keep(s: Any, out: int, where: int, n: int) -> None:
    """0 where the pixel does not count: a NaN under an ignored pixel goes nowhere."""
    zero = s.dtype.type(0)
    for i in range(n):
        v = s[out, i]
        s[out, i] = v if s[where, i] > zero else zero


@step
def equal(s: Any, out: int, a: int, value: Any, n: int) -> None:
    T = s.dtype.type
    for i in range(n):
        s[out, i] = T(1) if s[a, i] == value else T(0)


@step
def multiply(s: Any, out: int, a: int, b: int, n: int) -> None:
    for i in range(n):
        s[out, i] = s[a, i] * s[b, i]


@step
def scale(s: Any, out: int, by: int, n: int) -> None:
    for i in range(n):
        s[out, i] *= s[by, i]


@step
def rest(s: Any, out: int, a: int, b: int, n: int) -> None:
    """a (1 - b)"""
    one = s.dtype.type(1)
    for i in range(n):
        s[out, i] = s[a, i] * (one - s[b, i])


@step
def add(s: Any, out: int, scale: Any, a: int, b: int, n: int) -> None:
    """out += scale a b"""
    for i in range(n):
        s[out, i] += scale * s[a, i] * s[b, i]


@adding
def dot(s: Any, a: int, b: int, n: int) -> Any:
    found = s.dtype.type(0)
    for i in range(n):
        found += s[a, i] * s[b, i]
    return found


@adding
def weigh(s: Any, scale: Any, w: int, f: int, p: int, n: int) -> Any:
    """sum scale w f: a weight of 0 leaves out even an infinite value, and NaN stays"""
    zero = s.dtype.type(0)
    found = zero
    for i in range(n):
        weight = scale * s[w, i]
        value = weight * s[f, i]
        nothing = zero * s[p, i]
        found += nothing if weight == zero else value
    return found


@step
def add_weighed(s: Any, out: int, scale: Any, w: int, f: int, p: int, n: int) -> None:
    zero = s.dtype.type(0)
    for i in range(n):
        weight = scale * s[w, i]
        value = weight * s[f, i]
        nothing = zero * s[p, i]
        s[out, i] += nothing if weight == zero else value


# ------------------------------------------------------------------------------------------------------- targets


@adding
def outside(s: Any, y: int, top: Any, n: int) -> Any:
    """How many targets are not from 0 to top."""
    T = s.dtype.type
    found = T(0)
    for i in range(n):
        found += T(0) if (s[y, i] >= T(0)) & (s[y, i] <= top) else T(1)
    return found


@adding
def classify(s: Any, y: int, m: int, mask: int, masked: bool, ignore: Any, top: Any, whole: bool, n: int) -> Any:
    """m = 1 where the target counts, else 0. How many do, and how many are out of range."""
    T = s.dtype.type
    valid, invalid = T(0), T(0)
    for i in range(n):
        v = s[y, i]
        fits = (v >= T(0)) & (v <= top) & ((not whole) | (v == np.floor(v)))
        kept = (v != ignore) & ((not masked) | (s[mask, i] != T(0)))
        valid += T(1) if kept & fits else T(0)
        invalid += T(1) if kept & (not fits) else T(0)
        s[m, i] = T(1) if kept & fits else T(0)
    return valid, invalid


@step
def drop(s: Any, label: int, valid: int, n: int) -> None:
    """-1, no class, for pixels that do not count"""
    T = s.dtype.type
    for i in range(n):
        v = s[label, i]
        s[label, i] = v if s[valid, i] > T(0) else T(-1)


@adding
def negative(s: Any, a: int, n: int) -> Any:
    T = s.dtype.type
    found = T(0)
    for i in range(n):
        found += T(1) if s[a, i] < T(0) else T(0)
    return found


# ------------------------------------------------------------------------------------------------------- probabilities


@step
def exponential(s: Any, out: int, x: int, n: int) -> None:
    """e^-|x|"""
    zero = s.dtype.type(0)
    for i in range(n):
        s[out, i] = exp_negative(s[x, i] if s[x, i] < zero else -s[x, i])


@step
def sigmoid(s: Any, x: int, e: int, p: int, q: int, n: int) -> None:
    T = s.dtype.type
    for i in range(n):
        big = T(1) / (T(1) + s[e, i])
        small = s[e, i] * big
        s[p, i] = small if s[x, i] < T(0) else big
        s[q, i] = big if s[x, i] < T(0) else small


@step
def sigmoid_logarithms(s: Any, x: int, e: int, lp: int, lq: int, n: int) -> None:
    zero = s.dtype.type(0)
    for i in range(n):
        unit = log1p_unit(s[e, i])
        s[lp, i] = (-s[x, i] if s[x, i] < zero else zero) + unit
        s[lq, i] = (zero if s[x, i] < zero else s[x, i]) + unit


@step
def minus_log(s: Any, out: int, a: int, least: Any, n: int) -> None:
    for i in range(n):
        v = s[a, i]
        s[out, i] = -log(least if v < least else v)


@step
def largest(s: Any, out: int, a: int, n: int) -> None:
    for i in range(n):
        s[out, i] = s[a, i] if s[a, i] > s[out, i] else s[out, i]


@step
def exponentials(s: Any, x: int, top: int, e: int, n: int) -> None:
    for i in range(n):
        s[e, i] = exp_negative(s[x, i] - s[top, i])


@step
def add_others(s: Any, e: int, others: int, tops: int, n: int) -> None:
    """The sum without the largest, which would swallow the small ones."""
    T = s.dtype.type
    for i in range(n):
        v = s[e, i]
        s[others, i] += T(0) if v == T(1) else v
        s[tops, i] += T(1) if v == T(1) else T(0)


@step
def normalise(s: Any, others: int, tops: int, inverse: int, n: int) -> None:
    """1 / sum; of equal largest logits one is the top, the rest are others."""
    one = s.dtype.type(1)
    for i in range(n):
        rest = s[others, i] + (s[tops, i] - one)
        s[inverse, i] = one / (one + rest)
        s[others, i] = rest


@step
def log_sum(s: Any, others: int, out: int, n: int) -> None:
    zero = s.dtype.type(0)
    for i in range(n):
        rest = s[others, i]
        s[out, i] = log1p(zero if rest < zero else rest)


@step
def beside(s: Any, e: int, p: int, others: int, inverse: int, out: int, n: int) -> None:
    """1 - p, of the largest class without a cancellation"""
    one = s.dtype.type(1)
    for i in range(n):
        of_top, of_other = s[others, i] * s[inverse, i], one - s[p, i]
        s[out, i] = of_top if s[e, i] == one else of_other


@step
def below(s: Any, out: int, top: int, x: int, log_sum: int, n: int) -> None:
    """-log p = (top - x) + log sum"""
    for i in range(n):
        s[out, i] = (s[top, i] - s[x, i]) + s[log_sum, i]


# ------------------------------------------------------------------------------------------------------- terms


@step
def modulate(s: Any, out: int, q: int, lq: int, a: Any, n: int) -> None:
    """q^a, cheap for the exponents people use"""
    T = s.dtype.type
    if a == T(0):
        fill(s, out, T(1), n)
    elif a == T(1) or a == T(2):
        for i in range(n):
            s[out, i] = s[q, i] * (s[q, i] if a == T(2) else T(1))
    else:
        for i in range(n):
            s[out, i] = exp(-a * s[lq, i])


@step
def raise_to(s: Any, out: int, a: int, exponent: Any, n: int) -> None:
    """a^exponent for a >= 0: 0 at 0, with the exponents 0 and 1 exact"""
    T = s.dtype.type
    if exponent == T(0):
        fill(s, out, T(1), n)
    else:
        for i in range(n):
            s[out, i] = s[a, i] if exponent == T(1) else power(s[a, i], exponent)


@step
def add_entropy(s: Any, out: int, y: int, lp: int, n: int) -> None:
    """out += y (-log p), 0 where y is 0 even if the logarithm is infinite; NaN stays"""
    zero = s.dtype.type(0)
    for i in range(n):
        value = s[y, i] * s[lp, i]
        s[out, i] += value if (s[y, i] > zero) | (s[lp, i] != s[lp, i]) else zero


# ------------------------------------------------------------------------------------------------------- slopes


@step
def sigmoid_slope(s: Any, out: int, p: int, q: int, lp: int, modulation: int, a: Any, big: Any, n: int) -> None:
    """d (q^a l) / dz = -q^a (q + a p l), l = -log p"""
    for i in range(n):
        loss = big if s[lp, i] > big else s[lp, i]
        s[out, i] = -s[modulation, i] * (s[q, i] + a * (s[p, i] * loss))


@step
def slope_by_p(s: Any, out: int, p: int, q: int, lp: int, lq: int, modulation: int, a: Any, least: Any, n: int) -> None:
    """d (q^a l) / dp = -q^a / p - a q^(a-1) l, 0 where the logarithm is clamped or q is 0"""
    T = s.dtype.type
    for i in range(n):
        v = s[p, i]
        second = a * exp(-(a - T(1)) * s[lq, i]) * s[lp, i]
        s[out, i] = (-s[modulation, i] / v if v >= least else T(0) * v) - (second if s[q, i] > T(0) else T(0))


@step
def softmax_slope(s: Any, out: int, p: int, q: int, lp: int, modulation: int, a: Any, big: Any, n: int) -> None:
    """d (q^a l) / dl under softmax: q^a (1 + a p l / q), l / q -> 1 as q -> 0"""
    T = s.dtype.type
    for i in range(n):
        loss = big if s[lp, i] > big else s[lp, i]
        ratio = loss / s[q, i] if s[q, i] > T(0) else T(1)
        s[out, i] = s[modulation, i] * (T(1) + a * s[p, i] * ratio)


@step
def entropy_slope_by_p(s: Any, out: int, y: int, p: int, q: int, exclusive: bool, least: Any, n: int) -> None:
    T = s.dtype.type
    for i in range(n):
        zero, one = (T(1) - s[y, i]) / s[q, i], s[y, i] / s[p, i]
        zero = T(0) * s[q, i] if exclusive or s[q, i] < least else zero
        s[out, i] = zero - (T(0) * s[p, i] if s[p, i] < least else one)


@step
def add_where(s: Any, out: int, scale: Any, a: int, b: int, where: int, always: bool, n: int) -> None:
    """out += scale a b; nothing where ``where`` is 0"""
    zero = s.dtype.type(0)
    for i in range(n):
        value = scale * s[a, i] * s[b, i]
        s[out, i] += zero if s[where, i] == zero and not always else value


@step
def linear_slope(s: Any, out: int, y: int, p: int, constant: Any, by_y: Any, by_p: Any, by_py: Any, n: int) -> None:
    for i in range(n):
        s[out, i] = (constant + by_y * s[y, i]) + (by_p + by_py * s[y, i]) * s[p, i]


@step
def add_sign(s: Any, out: int, scale: Any, p: int, y: int, n: int) -> None:
    T = s.dtype.type
    for i in range(n):
        d = s[p, i] - s[y, i]
        s[out, i] += scale * (T(1) if d > T(0) else (T(-1) if d < T(0) else d))


@step
def difference(s: Any, out: int, a: int, b: int, n: int) -> None:
    for i in range(n):
        s[out, i] = s[a, i] - s[b, i]


@step
def divide(s: Any, out: int, by: int, n: int) -> None:
    for i in range(n):
        s[out, i] /= s[by, i]


@adding
def absolute(s: Any, u: int, p: int, y: int, n: int) -> Any:
    """sum u |p - y|"""
    zero = s.dtype.type(0)
    found = zero
    for i in range(n):
        d = s[p, i] - s[y, i]
        found += s[u, i] * (-d if d < zero else d)
    return found


@step
def finish_sigmoid(s: Any, out: Any, sample: int, c: int, at: int, p: int, q: int, dp: int, dz: int, n: int) -> None:
    row = out[sample, c, at : at + n]
    for i in range(n):
        row[i] = s[p, i] * s[q, i] * s[dp, i] + s[dz, i]


@step
def finish_softmax(s: Any, out: Any, sample: int, c: int, at: int, p: int, g: int, mean: int, n: int) -> None:
    """p (g - sum g p)"""
    row = out[sample, c, at : at + n]
    for i in range(n):
        row[i] = s[p, i] * (s[g, i] - s[mean, i])


@step
def add_softmax(
    s: Any, out: Any, sample: int, c: int, at: int, p: int, q: int, h: int, y: int, ats: int, offs: int, n: int
) -> None:
    """p (sum of the other h) - (1 - p) h. What belongs to y is kept apart: it may be so large that the others would
    vanish in the sum."""
    one = s.dtype.type(1)
    row = out[sample, c, at : at + n]
    for i in range(n):
        own = s[h, i] * s[y, i]
        off = s[h, i] * (one - s[y, i])
        others = (s[offs, i] - off) + (s[ats, i] - own)
        row[i] = (row[i] + s[p, i] * others) - s[q, i] * s[h, i]
