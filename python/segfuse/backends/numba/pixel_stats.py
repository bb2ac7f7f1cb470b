"""pixel_stats by Numba: one kernel for sums, gradient and loss map, the steps of csrc/cpp/pixel_stats_kernels.cpp.

The tensors are cut into pieces that depend on the shape alone; every piece adds up its own sums in float64, and the
pieces are added in their order: the same bits for any number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops.pixel_stats import MOMENTS, TERMS, Geometry, Plan, Segments, Tensors
from .._layout import ACTIVATION
from . import _hard_targets as hard
from . import _rows as r
from ._run import refuses, run
from ._tiles import LABELS, NUMBERS, Array, Operand, Piece

__all__ = ["backward", "forward", "loss_map", "refuses"]

CLAMP = 1e-7  # probabilities enter a logarithm no smaller than this
BIG = 1e30  # stands in for an infinite loss where it meets a factor 0
ELEMENTS = 1 << 16  # of a piece: long enough for Python's part, short enough for the second cache
MORE = 1 << 18  # of a piece whose kernel is quick
PARTIAL_BYTES = 1 << 26  # of the sums over segments, all pieces together

_SIGMOID, _SOFTMAX, _IDENTITY = ACTIVATION["sigmoid"], ACTIVATION["softmax"], ACTIVATION["identity"]
_FOCAL, _FOCAL_ALL, _POWER, _DSC, _DSC_PIXEL = (
    TERMS.index(kind) for kind in ("focal", "focal_all", "power", "dsc", "dsc_pixel")
)
_SUMS, _GRADIENT, _MAP = 1, 2, 4
_FIRST = np.int64(0)

# rows of the moments
_COUNT, _TRUE_COUNT, _WEIGHT, _TRUE, _TRUE2, _PRED, _PRED2, _TP, _TP2, _L1, _SQ_TRUE, _SQ_FALSE, _D_PRED, _D_SQ = (
    np.arange(len(MOMENTS))
)

# Rows of the scratch memory, as NumPy's integers: for Python's a function is compiled once per number. Of the pixel ...
_LABEL, _VALID, _MASK, _ONES, _SHARED, _TOP, _OTHERS, _TOPS, _INVERSE, _LOG_SUM, _ENTROPY = np.arange(11)
_MEAN, _ATS, _OFFS, _COUPLED, _SLOPE, _RESULT = np.arange(11, 17)
# ... of the class at hand ...
_Y, _OWN, _U, _D, _P, _Q, _LP, _LQ = np.arange(17, 25)
_UY, _UN, _W1, _W0, _F1, _F0, _T1, _T2, _DP, _DZ = np.arange(25, 35)
_CLASSES = np.int64(35)  # ... and of every class: x (later h), e and g

# numbers of a call
(_ACTIVATION, _EXCLUSIVE, _INDEX, _WHAT, _TERMS, _LOGS, _GENERAL, _PROBABILITIES, _REGION, _POWERS, _DISTANCES,
 _SEGMENTED, _LOOK, _BOTH, _OFF, _TARGETS) = range(16)  # fmt: skip
# operands
_X, _TARGET, _W, _K, _DISTANCE, _UPSTREAM, _OUT = range(7)


@r.step
def _weights(s: Any, j: int, w: Any, up: Any, given: Any, own: int, out: int, at: Any, n: int) -> Any:
    """u = valid * weight * upstream in the row ``out``; how many weights are negative."""
    negative = s.dtype.type(0)
    if given[_W]:
        r.read(s, out, w, at[_W, 0], j if w.shape[1] > 1 else _FIRST, at[_W, 1], n)
        negative = r.negative(s, out, n)
        r.keep(s, out, own, n)
    else:
        r.multiply(s, out, own, own, n)
    if given[_UPSTREAM]:
        r.read(s, _T1, up, at[_UPSTREAM, 0], j if up.shape[1] > 1 else _FIRST, at[_UPSTREAM, 1], n)
        r.scale(s, out, _T1, n)
    return negative


@r.step
def _classify(s: Any, y: int, m: int, g: Any, given: Any, ignore: Any, top: Any, n: int) -> Any:
    """m = 1 where the target counts, else 0. How many do, and how many are out of range."""
    T = s.dtype.type
    if not g[_LOOK] and r.outside(s, y, top, n) == T(0):
        r.fill(s, m, T(1), n)
        return T(n), T(0)
    return r.classify(s, y, m, _MASK, given[_K] > 0, ignore, top, g[_INDEX] > 0, n)


@r.step
def _target_of_pixels(
    s: Any, y: Any, k: Any, g: Any, given: Any, ignore: Any, top: Any, at: Any, C: int, n: int
) -> Any:
    """Which pixels count, where the classes of a pixel count together. How many, and how many are out of range."""
    T = s.dtype.type
    if given[_K]:
        r.read(s, _MASK, k, at[_K, 0], _FIRST, at[_K, 1], n)
    if g[_INDEX]:
        r.read(s, _LABEL, y, at[_TARGET, 0], _FIRST, at[_TARGET, 1], n)
        valid, invalid = _classify(s, _LABEL, _VALID, g, given, ignore, top, n)
        if valid < T(n):
            r.drop(s, _LABEL, _VALID, n)
        return valid, invalid
    invalid = T(0)
    r.fill(s, _VALID, T(1), n)
    for j in range(C):
        r.read(s, _Y, y, at[_TARGET, 0], j, at[_TARGET, 1], n)
        invalid += _classify(s, _Y, _OWN, g, given, ignore, top, n)[1]
        r.scale(s, _VALID, _OWN, n)
    return r.dot(s, _VALID, _ONES, n), invalid


@r.step
def _target_of_class(s: Any, j: int, y: Any, k: Any, g: Any, given: Any, ignore: Any, top: Any, at: Any, n: int) -> Any:
    """y of class j, and which pixels count, where every class counts by itself."""
    T = s.dtype.type
    if g[_INDEX]:
        r.equal(s, _Y, _LABEL, T(j), n)
        return T(0), T(0)
    r.read(s, _Y, y, at[_TARGET, 0], j, at[_TARGET, 1], n)
    if g[_EXCLUSIVE]:
        r.keep(s, _Y, _VALID, n)
        return T(0), T(0)
    if given[_K] and (j == 0 or k.shape[1] > 1):
        r.read(s, _MASK, k, at[_K, 0], j, at[_K, 1], n)
    valid, invalid = _classify(s, _Y, _VALID, g, given, ignore, top, n)
    if valid < T(n):
        r.keep(s, _Y, _VALID, n)
    return valid, invalid


@r.step
def _distance_of_class(s: Any, j: int, d: Any, given: Any, at: Any, n: int) -> None:
    if given[_DISTANCE]:
        r.read(s, _D, d, at[_DISTANCE, 0], j if d.shape[1] > 1 else _FIRST, at[_DISTANCE, 1], n)
        r.keep(s, _D, _VALID, n)
    else:
        r.fill(s, _D, s.dtype.type(1), n)


@r.step
def _softmax(s: Any, x: Any, logs: bool, plain: bool, at: Any, C: int, n: int) -> None:
    T = s.dtype.type
    for j in range(C):
        r.read(s, _CLASSES + j, x, at[_X, 0], j, at[_X, 1], n)
        if not plain:
            r.keep(s, _CLASSES + j, _VALID, n)
        if j == 0:
            r.multiply(s, _TOP, _CLASSES, _ONES, n)
        else:
            r.largest(s, _TOP, _CLASSES + j, n)
    r.fill(s, _OTHERS, T(0), n)
    r.fill(s, _TOPS, T(0), n)
    for j in range(C):
        r.exponentials(s, _CLASSES + j, _TOP, _CLASSES + C + j, n)
        r.add_others(s, _CLASSES + C + j, _OTHERS, _TOPS, n)
    r.normalise(s, _OTHERS, _TOPS, _INVERSE, n)
    if logs:
        r.log_sum(s, _OTHERS, _LOG_SUM, n)


@r.step
def _probabilities(s: Any, j: int, x: Any, g: Any, own_valid: bool, at: Any, C: int, n: int) -> None:
    """p, and where needed 1 - p and the logarithms, of class j."""
    T = s.dtype.type
    if g[_ACTIVATION] == _SOFTMAX:
        e = _CLASSES + C + j
        r.multiply(s, _P, e, _INVERSE, n)
        if g[_LOGS]:
            r.beside(s, e, _P, _OTHERS, _INVERSE, _Q, n)
            r.below(s, _LP, _TOP, _CLASSES + j, _LOG_SUM, n)
            if g[_GENERAL]:
                r.minus_log(s, _LQ, _Q, T(0), n)
        return
    row = _P if g[_ACTIVATION] == _IDENTITY else _CLASSES
    r.read(s, row, x, at[_X, 0], j, at[_X, 1], n)
    if not own_valid:
        r.keep(s, row, _VALID, n)
    if g[_ACTIVATION] == _IDENTITY:
        r.rest(s, _Q, _ONES, _P, n)
        if g[_LOGS]:
            r.minus_log(s, _LP, _P, T(CLAMP), n)
            r.minus_log(s, _LQ, _Q, T(CLAMP), n)
        return
    r.exponential(s, _T1, row, n)
    r.sigmoid(s, row, _T1, _P, _Q, n)
    if g[_LOGS]:
        r.sigmoid_logarithms(s, row, _T1, _LP, _LQ, n)


@r.step
def _moments(s: Any, partial: Any, group: int, j: int, rows: Any, valid: Any, probabilities: bool, n: int) -> None:
    """Adds the sums of class j that are functions of (p, y)."""
    if rows[_COUNT] >= 0:
        partial[rows[_COUNT], group, j] += valid
    if rows[_TRUE_COUNT] >= 0:
        partial[rows[_TRUE_COUNT], group, j] += r.dot(s, _Y, _ONES, n)
    if rows[_WEIGHT] >= 0:
        partial[rows[_WEIGHT], group, j] += r.dot(s, _U, _ONES, n)
    if rows[_TRUE] >= 0:
        partial[rows[_TRUE], group, j] += r.dot(s, _UY, _ONES, n)
    if rows[_TRUE2] >= 0:
        partial[rows[_TRUE2], group, j] += r.dot(s, _UY, _Y, n)
    if not probabilities:
        return
    if rows[_PRED] >= 0:
        partial[rows[_PRED], group, j] += r.dot(s, _U, _P, n)
    if rows[_TP] >= 0:
        partial[rows[_TP], group, j] += r.dot(s, _UY, _P, n)
    if rows[_PRED2] >= 0 or rows[_TP2] >= 0:
        r.multiply(s, _T1, _P, _P, n)
        if rows[_PRED2] >= 0:
            partial[rows[_PRED2], group, j] += r.dot(s, _U, _T1, n)
        if rows[_TP2] >= 0:
            partial[rows[_TP2], group, j] += r.dot(s, _UY, _T1, n)
    if rows[_L1] >= 0:
        partial[rows[_L1], group, j] += r.absolute(s, _U, _P, _Y, n)
    if rows[_SQ_TRUE] >= 0 or rows[_SQ_FALSE] >= 0 or rows[_D_SQ] >= 0:
        r.difference(s, _T1, _P, _Y, n)
        r.scale(s, _T1, _T1, n)
        if rows[_SQ_TRUE] >= 0:
            partial[rows[_SQ_TRUE], group, j] += r.dot(s, _UY, _T1, n)
        if rows[_SQ_FALSE] >= 0:
            partial[rows[_SQ_FALSE], group, j] += r.dot(s, _UN, _T1, n)
    if rows[_D_PRED] >= 0 or rows[_D_SQ] >= 0:
        r.multiply(s, _T2, _U, _D, n)
        if rows[_D_PRED] >= 0:
            partial[rows[_D_PRED], group, j] += r.dot(s, _T2, _P, n)
        if rows[_D_SQ] >= 0:
            partial[rows[_D_SQ], group, j] += r.dot(s, _T2, _T1, n)


@r.step
def _entropy(s: Any, g: Any, n: int) -> None:
    """Cross-entropy of every element, in its row; that of a pixel under softmax is there already."""
    if g[_ACTIVATION] != _SOFTMAX:
        r.fill(s, _ENTROPY, s.dtype.type(0), n)
        r.add_entropy(s, _ENTROPY, _Y, _LP, n)
        if not g[_EXCLUSIVE]:
            r.rest(s, _T1, _ONES, _Y, n)
            r.add_entropy(s, _ENTROPY, _T1, _LQ, n)


@r.step
def _term_weights(s: Any, kind: int, mapped: bool, n: int) -> Any:
    """The rows of the weights of both parts: u y and u (1 - y), or u, times the distance."""
    one, zero = (_U, _U) if kind == _FOCAL_ALL else (_UY, _UN)
    if mapped:
        r.multiply(s, _W1, one, _D, n)
        r.multiply(s, _W0, zero, _D, n)
        return _W1, _W0
    return one, zero


@r.step
def _self_adjusting(s: Any, out: int, a: Any, n: int) -> None:
    """(1 - p)^a p"""
    r.difference(s, _T2, _ONES, _P, n)
    r.raise_to(s, out, _T2, a, n)
    r.scale(s, out, _P, n)


@r.step
def _overlap(s: Any, b: Any, n: int) -> None:
    """2 q y + b and q + y + b, of q in the row F1"""
    T = s.dtype.type
    r.linear_slope(s, _T1, _Y, _F1, b, T(0), T(0), T(2), n)
    r.linear_slope(s, _T2, _Y, _F1, b, T(1), T(1), T(0), n)


@r.step
def _term_values(s: Any, kind: int, a: Any, b: Any, g: Any, n: int) -> Any:
    """The rows of what a term adds up, of y and of 1 - y."""
    if kind in (_FOCAL, _FOCAL_ALL):
        r.modulate(s, _F1, _Q, _LQ, a, n)
        r.scale(s, _F1, _LP, n)
        if not g[_EXCLUSIVE]:
            r.modulate(s, _F0, _P, _LP, a, n)
            r.scale(s, _F0, _LQ, n)
        return _F1, _F0
    if kind == _POWER:
        _entropy(s, g, n)
        r.raise_to(s, _F1, _ENTROPY, a, n)
        return _F1, _F1
    _self_adjusting(s, _F1, a, n)
    if kind == _DSC_PIXEL:  # 1 - (2 q y + b) / (q + y + b)
        _overlap(s, b, n)
        r.divide(s, _T1, _T2, n)
        r.difference(s, _F1, _ONES, _T1, n)
    return _F1, _F1


@r.step
def _add_to_pixel(s: Any, h: int, g: Any, n: int) -> None:
    """h of a class to the sums over classes, of y and of 1 - y apart."""
    r.add(s, _ATS, s.dtype.type(1), h, _Y, n)
    if g[_OFF]:
        r.rest(s, _T1, h, _Y, n)
        r.add(s, _OFFS, s.dtype.type(1), _T1, _ONES, n)


@r.step
def _logarithmic(kind: int) -> bool:
    return kind in (_FOCAL, _FOCAL_ALL, _POWER)


@r.step
def _of(coefficient: Any, rows: Any, moment: int, group: int, j: int) -> float:
    return coefficient[rows[moment], group, j] if rows[moment] >= 0 else 0.0


@r.step
def _moment_slopes(s: Any, dp: int, coefficient: Any, group: int, j: int, rows: Any, n: int) -> None:
    """d / dp of all moments."""
    T = s.dtype.type
    constant, by_y = T(_of(coefficient, rows, _PRED, group, j)), T(_of(coefficient, rows, _TP, group, j))
    by_p, by_py = T(2 * _of(coefficient, rows, _PRED2, group, j)), T(2 * _of(coefficient, rows, _TP2, group, j))
    r.linear_slope(s, dp, _Y, _P, constant, by_y, by_p, by_py, n)
    if rows[_L1] >= 0:
        r.add_sign(s, dp, T(_of(coefficient, rows, _L1, group, j)), _P, _Y, n)
    if rows[_SQ_TRUE] >= 0 or rows[_SQ_FALSE] >= 0:
        r.difference(s, _T1, _P, _Y, n)
        r.rest(s, _T2, _T1, _Y, n)
        r.scale(s, _T1, _Y, n)
        r.add(s, dp, T(2 * _of(coefficient, rows, _SQ_TRUE, group, j)), _T1, _ONES, n)
        r.add(s, dp, T(2 * _of(coefficient, rows, _SQ_FALSE, group, j)), _T2, _ONES, n)
    if rows[_D_PRED] >= 0 or rows[_D_SQ] >= 0:
        r.difference(s, _T1, _P, _Y, n)
        r.add(s, dp, T(_of(coefficient, rows, _D_PRED, group, j)), _D, _ONES, n)
        r.add(s, dp, T(2 * _of(coefficient, rows, _D_SQ, group, j)), _D, _T1, n)
    r.scale(s, dp, _U, n)


@r.step
def _term_slopes(
    s: Any, dp: int, dz: int, kind: int, mapped: bool, a: Any, b: Any, one: Any, zero: Any, g: Any, n: int
) -> None:
    """Adds the derivative of one term: by p in the row DP; a logarithmic one in the row DZ by z (probabilities: by p),
    under softmax by -log p."""
    T = s.dtype.type
    w1, w0 = _term_weights(s, kind, mapped, n)
    raw, softmax = g[_ACTIVATION] == _IDENTITY, g[_ACTIVATION] == _SOFTMAX
    if kind in (_FOCAL, _FOCAL_ALL):
        r.modulate(s, _F1, _Q, _LQ, a, n)
        if softmax:
            r.softmax_slope(s, _T1, _P, _Q, _LP, _F1, a, T(BIG), n)
        elif raw:
            r.slope_by_p(s, _T1, _P, _Q, _LP, _LQ, _F1, a, T(CLAMP), n)
        else:
            r.sigmoid_slope(s, _T1, _P, _Q, _LP, _F1, a, T(BIG), n)
        r.add(s, dz, one, w1, _T1, n)
        if g[_EXCLUSIVE]:
            return
        r.modulate(s, _F1, _P, _LP, a, n)
        if raw:
            r.slope_by_p(s, _T1, _Q, _P, _LQ, _LP, _F1, a, T(CLAMP), n)
        else:
            r.sigmoid_slope(s, _T1, _Q, _P, _LQ, _F1, a, T(BIG), n)
        r.add(s, dz, -zero, w0, _T1, n)
        return
    r.fill(s, _T2, T(0), n)
    r.add(s, _T2, one, w1, _ONES, n)
    if kind == _POWER:
        if softmax:
            return
        if not g[_EXCLUSIVE]:
            r.add(s, _T2, zero, w0, _ONES, n)
        _entropy(s, g, n)
        r.raise_to(s, _F1, _ENTROPY, a - T(1), n)
        r.scale(s, _F1, _T2, n)
        if raw:
            r.entropy_slope_by_p(s, _T1, _Y, _P, _Q, g[_EXCLUSIVE] > 0, T(CLAMP), n)
        else:
            r.rest(s, _T1, _P, _Y, n)
            r.add(s, _T1, T(-1), _Y, _Q, n)
        r.add_where(s, dz, a, _F1, _T1, _ENTROPY, g[_EXCLUSIVE] > 0, n)
        return
    r.add(s, _T2, zero, w0, _ONES, n)  # times d ((1 - p)^a p) / dp
    if a != T(0):
        r.difference(s, _F1, _ONES, _P, n)
        r.raise_to(s, _T1, _F1, a - T(1), n)
        r.scale(s, _T2, _T1, n)
        r.add(s, _F1, -a, _P, _ONES, n)
        r.scale(s, _T2, _F1, n)
    if kind == _DSC_PIXEL:  # times (-2 y (q + y + b) + 2 q y + b) / (q + y + b)^2
        r.multiply(s, _F0, _T2, _ONES, n)
        _self_adjusting(s, _F1, a, n)
        _overlap(s, b, n)
        r.add(s, _T1, T(-2), _T2, _Y, n)
        r.divide(s, _T1, _T2, n)
        r.divide(s, _T1, _T2, n)
        r.multiply(s, _T2, _F0, _T1, n)
    r.add(s, dp, T(1), _T2, _ONES, n)


@r.kernel
def _pass(
    first: int,
    last: int,
    begin: int,
    end: int,
    x: Any,
    y: Any,
    w: Any,
    k: Any,
    d: Any,
    up: Any,
    out: Any,
    copied: Any,
    given: Any,
    segment: Any,
    at: Any,
    s: Any,
    partial: Any,
    coefficient: Any,
    rows: Any,
    terms: Any,
    exponents: Any,
    g: Any,
    ignore: float,
) -> int:
    """Samples first to last, pixels begin to end, all classes. How many targets and weights are out of range."""
    T = s.dtype.type
    C = x.shape[1]
    what, softmax, exclusive, index = g[_WHAT], g[_ACTIVATION] == _SOFTMAX, g[_EXCLUSIVE] > 0, g[_INDEX] > 0
    sums, gradient, mapping = what & _SUMS > 0, what & _GRADIENT > 0, what & _MAP > 0
    together = index or exclusive  # the classes of a pixel count together
    shared = together and (not given[_W] or w.shape[1] == 1) and (not given[_UPSTREAM] or up.shape[1] == 1)
    top = T(C - 1) if index else T(1)
    own_ignore = T(ignore)
    h, e, region = _CLASSES, _CLASSES + C, _CLASSES + 2 * C
    invalid = T(0)
    bad = 0
    r.fill(s, _ONES, T(1), s.shape[1])
    for sample in range(first, last):
        start = begin
        while start < end:
            stop, group = min(start + s.shape[1], end), sample
            if g[_SEGMENTED]:
                group = segment[sample, start]
                n = 1
                while start + n < stop and segment[sample, start + n] == group:
                    n += 1
                stop = start + n
            n = stop - start
            for operand in range(7):
                at[operand, 0] = sample - (first if copied[operand] else 0)
                at[operand, 1] = start - (begin if copied[operand] else 0)

            valid = T(n)
            if together:
                valid, invalid = _target_of_pixels(s, y, k, g, given, own_ignore, top, at, C, n)
                bad += int(invalid)
            if shared:
                bad += int(_weights(s, _FIRST, w, up, given, _VALID, _U, at, n))
            if softmax and g[_PROBABILITIES]:
                _softmax(s, x, g[_LOGS] > 0, valid == T(n), at, C, n)
                if g[_POWERS]:
                    r.fill(s, _ENTROPY, T(0), n)
                    for j in range(C):
                        _target_of_class(s, j, y, k, g, given, own_ignore, top, at, n)
                        r.below(s, _LP, _TOP, _CLASSES + j, _LOG_SUM, n)
                        r.add_entropy(s, _ENTROPY, _Y, _LP, n)
            if gradient and softmax:
                r.fill(s, _MEAN, T(0), n)
                r.fill(s, _ATS, T(0), n)
                r.fill(s, _OFFS, T(0), n)
            if mapping and exclusive:
                r.fill(s, _RESULT, T(0), n)

            for j in range(C):
                if g[_TARGETS] or not together:
                    own, invalid = _target_of_class(s, j, y, k, g, given, own_ignore, top, at, n)
                    if not together:
                        valid = own
                        bad += int(invalid)
                if not shared:
                    bad += int(_weights(s, j, w, up, given, _VALID, _U, at, n))
                if g[_DISTANCES]:
                    _distance_of_class(s, j, d, given, at, n)
                if g[_TARGETS]:
                    r.multiply(s, _UY, _U, _Y, n)
                if g[_BOTH]:
                    r.rest(s, _UN, _U, _Y, n)
                if g[_PROBABILITIES]:
                    _probabilities(s, j, x, g, valid == T(n), at, C, n)

                if sums:
                    _moments(s, partial, group, j, rows, valid, g[_PROBABILITIES] > 0, n)
                if mapping and not exclusive:
                    r.fill(s, _RESULT, T(0), n)
                if sums or mapping:
                    for t in range(g[_TERMS]):
                        kind, row = terms[t, 0], terms[t, 1]
                        w1, w0 = _term_weights(s, kind, terms[t, 2] > 0, n)
                        f1, f0 = _term_values(s, kind, T(exponents[t, 0]), T(exponents[t, 1]), g, n)
                        both = not (exclusive and _logarithmic(kind))
                        if sums:
                            partial[row, group, j] += r.weigh(s, T(1), w1, f1, _P, n)
                            if both:
                                partial[row + 1, group, j] += r.weigh(s, T(1), w0, f0, _P, n)
                        if mapping:
                            r.add_weighed(s, _RESULT, T(coefficient[row, group, j]), w1, f1, _P, n)
                            if both:
                                r.add_weighed(s, _RESULT, T(coefficient[row + 1, group, j]), w0, f0, _P, n)
                if mapping and not exclusive:
                    r.write(s, _RESULT, out, at[_OUT, 0], j, at[_OUT, 1], n)
                if not gradient:
                    continue

                dp, dz = (region + j, h + j) if softmax else (_DP, _DZ)
                if not g[_PROBABILITIES]:  # counts have no gradient
                    r.fill(s, _DP, T(0), n)
                    r.write(s, _DP, out, at[_OUT, 0], j, at[_OUT, 1], n)
                    continue
                if g[_LOGS] or not softmax:
                    r.fill(s, dz, T(0), n)
                if g[_REGION] or not softmax:
                    _moment_slopes(s, dp, coefficient, group, j, rows, n)
                for t in range(g[_TERMS]):
                    row = terms[t, 1]
                    one, zero = T(coefficient[row, group, j]), T(coefficient[row + 1, group, j])
                    a, b = T(exponents[t, 0]), T(exponents[t, 1])
                    _term_slopes(s, dp, dz, terms[t, 0], terms[t, 2] > 0, a, b, one, zero, g, n)
                if not softmax:
                    if g[_ACTIVATION] == _SIGMOID:
                        r.finish_sigmoid(s, out, at[_OUT, 0], j, at[_OUT, 1], _P, _Q, _DP, _DZ, n)
                    else:
                        r.add(s, _DP, T(1), _DZ, _ONES, n)
                        r.write(s, _DP, out, at[_OUT, 0], j, at[_OUT, 1], n)
                    continue
                if g[_REGION]:
                    r.add(s, _MEAN, T(1), dp, _P, n)
                if g[_LOGS]:
                    _add_to_pixel(s, dz, g, n)

            if mapping and exclusive:
                r.write(s, _RESULT, out, at[_OUT, 0], _FIRST, at[_OUT, 1], n)
            if not (gradient and softmax and g[_PROBABILITIES]):
                start = stop
                continue
            # A power of a pixel's entropy joins the weights of its classes.
            for t in range(g[_TERMS]):
                if terms[t, 0] != _POWER:
                    continue
                a = T(exponents[t, 0])
                r.fill(s, _COUPLED, T(0), n)
                for j in range(C):
                    _target_of_class(s, j, y, k, g, given, own_ignore, top, at, n)
                    if not shared:
                        _weights(s, j, w, up, given, _VALID, _U, at, n)
                    r.multiply(s, _UY, _U, _Y, n)
                    if terms[t, 2]:
                        _distance_of_class(s, j, d, given, at, n)
                        r.scale(s, _UY, _D, n)
                    r.add(s, _COUPLED, T(coefficient[terms[t, 1], group, j]), _UY, _ONES, n)
                r.raise_to(s, _SLOPE, _ENTROPY, a - T(1), n)
                r.scale(s, _COUPLED, _SLOPE, n)
                for j in range(C):
                    _target_of_class(s, j, y, k, g, given, own_ignore, top, at, n)
                    r.fill(s, _DZ, T(0), n)
                    r.add(s, _DZ, a, _COUPLED, _Y, n)
                    r.add(s, h + j, T(1), _DZ, _ONES, n)
                    _add_to_pixel(s, _DZ, g, n)
            for j in range(C):
                r.multiply(s, _P, e + j, _INVERSE, n)
                r.finish_softmax(s, out, at[_OUT, 0], j, at[_OUT, 1], _P, region + j if g[_REGION] else _MEAN, _MEAN, n)
                if g[_LOGS]:
                    _target_of_class(s, j, y, k, g, given, own_ignore, top, at, n)
                    r.beside(s, e + j, _P, _OTHERS, _INVERSE, _Q, n)
                    r.add_softmax(s, out, at[_OUT, 0], j, at[_OUT, 1], _P, _Q, h + j, _Y, _ATS, _OFFS, n)
            start = stop
    return bad


class _Job:
    """One call: its operands, its pieces, and what the kernel is told."""

    def __init__(
        self,
        x: Tensors,
        g: Geometry,
        plan: Plan,
        what: int,
        out: Tensor | None,
        coefficient: Tensor | None,
        upstream: Tensor | None,
        segments: Segments | None,
    ) -> None:
        N, C = g.shape[:2]
        self.dtype = np.dtype(np.float64 if x.input.dtype == torch.float64 else np.float32)
        tensors = (*x, upstream, out)
        self.softmax = g.activation == "softmax"
        self.hard = (
            self.dtype == np.float32
            and not x.target.dtype.is_floating_point
            and ((self.softmax and g.index_target) or (g.activation == "sigmoid" and not g.exclusive))
            and (x.weight is None or not self.softmax or x.weight.ndim < x.input.ndim or x.weight.shape[1] == 1)
            and not what & _MAP
            and upstream is None
            and segments is None
            and set(plan.moments) <= set(hard.SUMS)
            and all(t.kind == "focal" and not t.mapped for t in plan.terms)
        )
        known = {_X: NUMBERS, _OUT: NUMBERS, _TARGET: LABELS} if self.hard else {}
        self.operands = [
            None if t is None else Operand(t, g.spatial, self.dtype, known.get(i)) for i, t in enumerate(tensors)
        ]
        self.given = np.array([t is not None for t in tensors], np.int64)
        self.copied = np.array([o is not None and not o.in_place for o in self.operands], np.int64)
        self.ignore = float(g.ignore_index)
        native = plan.native
        self.moments = np.array(native["moments"], np.int64)
        self.terms = np.array([(t[0], t[3], t[4]) for t in native["terms"]], np.int64).reshape(-1, 3)
        self.exponents = np.array([t[1:3] for t in native["terms"]], np.float64).reshape(-1, 2)
        kinds = [t.kind for t in plan.terms]
        logarithmic = [t for t in plan.terms if t.kind in ("focal", "focal_all", "power")]
        region = any(row >= 0 for row in native["moments"][_PRED:])
        # A target in range may be ignored after all, or be no class number.
        looked_at = (
            x.mask is not None
            or 0 <= g.ignore_index <= (C - 1 if g.index_target else 1)
            or (g.index_target and x.target.dtype.is_floating_point)
        )
        # Sums of 1 - y: only the logarithmic terms of exclusive classes have none.
        both = "sq_false" in plan.moments or any(not g.exclusive or t not in logarithmic for t in plan.terms)
        self.told = np.array(
            [
                ACTIVATION[g.activation],
                g.exclusive,
                g.index_target,
                what,
                len(kinds),
                bool(logarithmic),
                any(t.a not in (0, 1, 2) for t in logarithmic if t.kind != "power"),
                region or bool(kinds),
                region or len(logarithmic) < len(kinds),
                "power" in kinds,
                any(t.mapped for t in plan.terms) or any(name.startswith("distance") for name in plan.moments),
                segments is not None,
                looked_at,
                both,
                not g.index_target or "focal_all" in kinds,
                region or bool(kinds) or any(name.startswith("true") for name in plan.moments),
            ],
            np.int64,
        )
        self.coefficient = (
            np.zeros((0, 0, 0)) if coefficient is None else np.ascontiguousarray(coefficient.detach().double().numpy())
        )
        self.segment = (
            np.zeros((0, 0), np.int32) if segments is None else segments.of_pixel.detach().numpy().reshape(N, g.pixels)
        )
        groups = segments.groups if segments else N
        self.width = 256 if self.softmax else 512
        self.C, self.S = C, g.pixels
        self.how = (
            x.weight is not None,
            x.mask is not None,
            what & _SUMS > 0,
            what & _GRADIENT > 0,
            region or bool(kinds),
            g.index_target,
        )
        self._cut(N, C, g.pixels, plan.rows * groups * C * 8 if segments else 0)
        parts = len(self.pieces) if segments else self.parts
        self.partial = np.zeros((parts, plan.rows if what & _SUMS else 0, groups, C))
        self.invalid = np.zeros(len(self.pieces), np.int64)

    def _cut(self, N: int, C: int, S: int, segment_bytes: int) -> None:
        """Pieces that depend on the shape alone: some whole samples, or a part of one."""
        length = max(self.width, (MORE if self.hard else ELEMENTS) // C // self.width * self.width)
        if segment_bytes:
            most = max(1, PARTIAL_BYTES // segment_bytes // max(N, 1))
            length = max(length, -(-S // most))
        self.parts = max(1, -(-S // length))
        many = 1 if self.parts > 1 or segment_bytes else max(1, length // max(S, 1))
        self.pieces = [
            Piece(n, min(n + many, N), begin, min(begin + length, S))
            for n in range(0, N, many)
            for begin in range(0, S, length)
        ]
        self.most, self.pixels = many, min(length, S)

    def work_hard(self, first: int, last: int) -> None:
        if first == last:
            return
        empty = np.empty((1, 1, 1), self.dtype)
        kept = [self.operands[i] for i in (_X, _TARGET, _W, _K, _OUT)]
        tiles = [empty if o is None else o.tile(self.most, self.pixels) for o in kept]
        if kept[-1] is None:
            tiles[-1] = np.empty(0, tiles[0].dtype)  # as where there is one: a kernel is compiled for each dtype
        flat = [t.reshape(-1) for t in tiles]
        scratch = hard.scratch(self.C, len(self.terms), self.dtype)
        kernel = hard.softmax_pass if self.softmax else hard.sigmoid_pass
        at = np.zeros((len(kept), 3), np.int64)
        for i in range(first, last):
            piece = self.pieces[i]
            for o, tile, where in zip(kept, tiles, at):
                if o is None:
                    continue
                pixels = self.S if o.in_place else self.pixels
                where[0] = piece.first * o.channels * self.S + piece.begin if o.in_place else 0
                where[1:] = pixels if o.channels > 1 else 0, o.channels * pixels
                if o is not kept[-1]:
                    o.load(piece, tile)
            self.invalid[i] = kernel(
                piece.first, piece.last, piece.end - piece.begin, self.C, *flat, at, self.how, scratch,
                self.partial[i % self.parts], self.coefficient, self.moments, self.terms, self.exponents, self.ignore,
            )  # fmt: skip
            if kept[-1] is not None:
                kept[-1].store(piece, tiles[-1])

    def work(self, first: int, last: int) -> None:
        if first == last:
            return
        none = np.zeros((1, 1, 1), self.dtype)
        tiles = [none if o is None else o.tile(self.most, self.pixels) for o in self.operands]
        scratch = np.empty((_CLASSES + (3 * self.C if self.softmax else 1), self.width), self.dtype)
        at = np.empty((len(self.operands), 2), np.int64)  # where the tile begins in each operand
        segmented = self.segment.size > 0
        with np.errstate(all="ignore"):
            for i in range(first, last):
                piece = self.pieces[i]
                for operand, tile in zip(self.operands[:_OUT], tiles):
                    if operand is not None:
                        operand.load(piece, tile)
                self.invalid[i] = _pass(
                    piece.first, piece.last, piece.begin, piece.end, *tiles, self.copied, self.given, self.segment,
                    at, scratch, self.partial[i if segmented else i % self.parts], self.coefficient, self.moments,
                    self.terms, self.exponents, self.told, self.ignore,
                )  # fmt: skip
                out = self.operands[_OUT]
                if out is not None:
                    out.store(piece, tiles[_OUT])

    def run(self) -> int:
        run(self.work_hard if self.hard else self.work, len(self.pieces))
        return int(self.invalid.sum())


def forward(
    x: Tensors,
    g: Geometry,
    plan: Plan,
    segments: Segments | None = None,
    grad: Tensor | None = None,
    coefficient: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Sums ``(K, N, C)`` or ``(K, groups, 1)`` and the number of targets or weights out of range.

    With ``grad`` the pass writes the gradient of ``sum(coefficient * sums)`` there too.
    """
    job = _Job(x, g, plan, _SUMS if grad is None else _SUMS | _GRADIENT, grad, coefficient, None, segments)
    invalid = job.run()
    sums: Array = np.add.reduce(job.partial, axis=0)
    return torch.from_numpy(sums), invalid


def backward(
    x: Tensors,
    g: Geometry,
    plan: Plan,
    coefficient: Tensor,
    upstream: Tensor | None = None,
    segments: Segments | None = None,
) -> Tensor:
    grad = torch.empty_like(x.input)
    _Job(x, g, plan, _GRADIENT, grad, coefficient, upstream, segments).run()
    return grad


def loss_map(x: Tensors, g: Geometry, plan: Plan, coefficient: Tensor) -> tuple[Tensor, int]:
    out = torch.empty(
        g.map_shape, dtype=torch.float64 if x.input.dtype == torch.float64 else torch.float32, device="cpu"
    )
    return out, _Job(x, g, plan, _MAP, out, coefficient, None, None).run()
