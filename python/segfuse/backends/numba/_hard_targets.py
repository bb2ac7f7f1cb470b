"""pixel_stats of hard targets and of the sums that most losses are made of, in registers: for a fraction of what the
general kernel takes, to compile and to run.

Steps and numerics are those of csrc/cpp/pixel_stats_kernels.cpp: of the side that a hard target is on only the own loss
is computed, under softmax once for a pixel. Sums of a tile are float32, one lane for each 16 pixels, and then float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ops.pixel_stats import MOMENTS
from ._half import put_number, take_number
from ._lanes import (
    LANES,
    constant,
    convert,
    counting,
    exp_negative,
    load,
    log,
    log1p,
    magnitude,
    most,
    opposite,
    part,
    select,
    spread,
    store,
    take,
)
from ._lanes import total as total_of
from ._run import compiled
from ._tiles import Array

SUMS = ("count", "true_count", "n", "true", "true2", "pred", "pred2", "tp", "tp2")  # that are made here
COUNT, TRUE_COUNT, WEIGHT, TRUE, TRUE2, PRED, PRED2, TP, TP2 = (list(MOMENTS).index(name) for name in SUMS)
TILE = 256  # pixels of every class
LINE = 1024  # pixels of one class
PITCH = TILE + LANES  # of a row: rows a power of two apart would share few places in the cache
BIG = 1e30  # stands in for an infinite loss where it meets a factor 0
_CLASS = 4  # coefficients of a class: of u p, u y p, and twice of u p^2, u y p^2
_LABEL, _U, _TOP, _INVERSE, _MEAN, _H, _OWN = (np.int64(i * PITCH) for i in range(7))  # rows of a pixel ...
_ROWS = 7  # ... and then those of every term, of the classes, and the coefficients


def scratch(classes: int, terms: int, dtype: Any) -> Array:
    return np.empty((_ROWS + 2 * terms + classes) * PITCH + classes * (_CLASS + 2 * terms) + LANES, dtype)


@part
def _modulated(q: Any, a: float) -> Any:
    """q^a"""
    found = q
    if a == 0:
        found = constant(q, 1)
    elif a == 2:
        found = q * q
    elif a != 1:
        found = exp_negative(log(q) * a)
    return found


@part
def _target(y: Any, at: int, k: Any, k_at: int, masked: bool, count: int, ignore: float, top: int, s: Any) -> Any:
    """The target in the type of s, where it counts, and where it is out of range."""
    label = convert(s, take(y, at, count))
    kept = (counting(s) < count) & (label != ignore)
    if masked:
        kept = kept & (take(k, k_at, count) != 0)
    fits = (label >= 0) & (label <= top)
    return label, kept & fits, kept & opposite(fits)


@part
def _coefficients(coefficient: Any, rows: Any, terms: Any, sample: int, classes: int, s: Any, at: int) -> None:
    """Of a sample, in the type of the kernel."""
    for j in range(classes):
        for i, moment in enumerate((PRED, TP, PRED2, TP2)):
            k = coefficient[rows[moment], sample, j] if rows[moment] >= 0 else 0.0
            s[at + i] = k * (1 if i < 2 else 2)
        at += _CLASS
        for t in range(len(terms)):
            s[at + 2 * t] = coefficient[terms[t, 1], sample, j]
            s[at + 2 * t + 1] = coefficient[terms[t, 1] + 1, sample, j]
        at += 2 * len(terms)


@part
def _place(at: Any, operand: int, n: int, j: int) -> int:
    """Of the first pixel of a class of a sample."""
    return at[operand, 0] + n * at[operand, 2] + j * at[operand, 1]


@part
def _slope(s: Any, at: int, y: Any, p: Any) -> Any:
    """d / dp of all moments, without the weight. y: where the class is the target"""
    return (select(y, spread(s, s[at + 1]), 0) + s[at]) + (select(y, spread(s, s[at + 3]), 0) + s[at + 2]) * p


@part
def _add(partial: Any, row: int, sample: int, j: int, lanes: Any) -> None:
    if row >= 0:
        partial[row, sample, j] += total_of(lanes)


@part
def _add_sums(
    partial: Any, rows: Any, sample: int, j: int, seen: Any, y_count: Any, weight: Any, true: Any,
    pred: Any, pred2: Any, tp: Any, tp2: Any,
) -> None:  # fmt: skip
    _add(partial, rows[COUNT], sample, j, seen)
    _add(partial, rows[TRUE_COUNT], sample, j, y_count)
    _add(partial, rows[WEIGHT], sample, j, weight)
    _add(partial, rows[TRUE], sample, j, true)
    _add(partial, rows[TRUE2], sample, j, true)
    _add(partial, rows[PRED], sample, j, pred)
    _add(partial, rows[PRED2], sample, j, pred2)
    _add(partial, rows[TP], sample, j, tp)
    _add(partial, rows[TP2], sample, j, tp2)


@compiled
def softmax_pass(
    first: int,
    last: int,
    length: int,
    classes: int,
    x: Array,
    y: Array,
    w: Array,
    k: Array,
    out: Array,
    at: Array,
    how: tuple[bool, bool, bool, bool, bool, bool],
    s: Array,
    partial: Array,
    coefficient: Array,
    rows: Array,
    terms: Array,
    exponents: Array,
    ignore: float,
) -> int:
    """Class numbers under softmax. How many targets and weights are out of range.

    at: where a tensor begins, and how far the next class and sample are. how: weight, mask, sums, gradient, whether
    probabilities are wanted, class numbers (here always). terms: kind, row and mapped of each.
    """
    weighted, masked, sums, gradient, probabilities, _ = how
    T = len(terms)
    values, slopes = _ROWS * PITCH, (_ROWS + T) * PITCH
    e_at = (_ROWS + 2 * T) * PITCH
    k_at, each = e_at + classes * PITCH, _CLASS + 2 * T
    wrong = spread(s, 0)
    for sample in range(first, last):
        n = sample - first
        if gradient:
            _coefficients(coefficient, rows, terms, sample, classes, s, k_at)
        for begin in range(0, length, TILE):
            size = min(TILE, length - begin)
            y_at, w_at, mask_at = (
                _place(at, 1, n, 0) + begin,
                _place(at, 2, n, 0) + begin,
                _place(at, 3, n, 0) + begin,
            )
            seen = spread(s, 0)
            for i in range(0, size, LANES):
                count = size - i
                label, valid, off = _target(y, y_at + i, k, mask_at + i, masked, count, ignore, classes - 1, s)
                wrong = wrong + select(off, spread(s, 1), 0)
                one = select(valid, spread(s, 1), 0)
                seen, u = seen + one, one
                if weighted:
                    u = take(w, w_at + i, count)
                    wrong = wrong + select(u < 0, spread(s, 1), 0)
                    u = select(valid, u, 0)
                store(s, _LABEL + i, select(valid, label, -1))
                store(s, _U + i, u)
            if probabilities:
                for j in range(classes):
                    x_at = _place(at, 0, n, j) + begin
                    for i in range(0, size, LANES):
                        v = take_number(x, x_at + i, size - i)
                        v = select(load(s, _LABEL + i) >= 0, v, 0)
                        store(s, e_at + j * PITCH + i, v)
                        store(s, _TOP + i, v if j == 0 else most(v, load(s, _TOP + i)))
                for i in range(0, size, LANES):
                    label, top, u = load(s, _LABEL + i), load(s, _TOP + i), load(s, _U + i)
                    others, tops, below, own = spread(s, 0), spread(s, -1), spread(s, 0), spread(s, 0)
                    for j in range(classes):
                        to = e_at + j * PITCH + i
                        d = load(s, to) - top
                        e = exp_negative(d)
                        store(s, to, e)
                        # the sum without the largest, which would swallow the small ones
                        others, tops = others + select(e == 1, 0, e), tops + select(e == 1, spread(s, 1), 0)
                        below, own = select(label == j, d, below), select(label == j, e, own)
                    others = others + tops
                    inverse = constant(u, 1) / (others + 1)
                    store(s, _INVERSE + i, inverse)
                    p = own * inverse
                    q = select(own == 1, others * inverse, constant(u, 1) - p)
                    loss = log1p(select(others < 0, 0, others)) - below
                    limited = select(loss > BIG, BIG, loss)
                    for t in range(T):
                        a = exponents[t, 0]
                        f = _modulated(q, a)
                        store(s, values + t * PITCH + i, select(u == 0, p * 0, u * f * loss))  # even an infinite loss
                        f = f * (p * select(q > 0, limited / q, 1) * a + 1)  # d (q^a l) / dl, l / q -> 1 as q -> 0
                        store(s, slopes + t * PITCH + i, u * f)
                    if gradient:
                        mean, h = spread(s, 0), spread(s, 0)
                        for j in range(classes):
                            c = k_at + j * each
                            p = load(s, e_at + j * PITCH + i) * inverse
                            mean = mean + u * _slope(s, c, label == j, p) * p
                            found = spread(s, 0)
                            for t in range(T):
                                found = found + load(s, slopes + t * PITCH + i) * s[c + _CLASS + 2 * t]
                            h = select(label == j, found, h)
                        store(s, _MEAN + i, mean)
                        store(s, _H + i, h)
                        store(s, _OWN + i, q * h * -1)
            for j in range(classes):
                y_count, true, pred, pred2 = spread(s, 0), spread(s, 0), spread(s, 0), spread(s, 0)
                weight, tp, tp2 = spread(s, 0), spread(s, 0), spread(s, 0)
                c, out_at = k_at + j * each, _place(at, 4, n, j) + begin
                for i in range(0, size, LANES):
                    here, u = load(s, _LABEL + i) == j, load(s, _U + i)
                    p = load(s, e_at + j * PITCH + i) * load(s, _INVERSE + i) if probabilities else u
                    if sums:
                        up = u * p
                        upp = up * p
                        y_count, weight = y_count + select(here, spread(s, 1), 0), weight + u
                        true, pred, pred2 = true + select(here, u, 0), pred + up, pred2 + upp
                        tp, tp2 = tp + select(here, up, 0), tp2 + select(here, upp, 0)
                    if gradient:
                        g = u * _slope(s, c, here, p) - load(s, _MEAN + i)
                        g = p * g + select(here, load(s, _OWN + i), p * load(s, _H + i))
                        put_number(out, out_at + i, size - i, g if probabilities else u * 0)
                if sums:
                    _add_sums(partial, rows, sample, j, seen, y_count, weight, true, pred, pred2, tp, tp2)
                    for t in range(T):
                        found = spread(s, 0)
                        for i in range(0, size, LANES):
                            found = found + select(load(s, _LABEL + i) == j, load(s, values + t * PITCH + i), 0)
                        _add(partial, terms[t, 1], sample, j, found)
    return int(total_of(wrong))


@compiled
def sigmoid_pass(
    first: int,
    last: int,
    length: int,
    classes: int,
    x: Array,
    y: Array,
    w: Array,
    k: Array,
    out: Array,
    at: Array,
    how: tuple[bool, bool, bool, bool, bool, bool],
    s: Array,
    partial: Array,
    coefficient: Array,
    rows: Array,
    terms: Array,
    exponents: Array,
    ignore: float,
) -> int:
    """The same under sigmoid: of class numbers, or of one target for each class."""
    weighted, masked, sums, gradient, probabilities, index = how
    T = len(terms)
    squares = rows[PRED2] >= 0 or rows[TP2] >= 0
    k_at, each = 2 * T * LANES, _CLASS + 2 * T
    wrong = spread(s, 0)
    for sample in range(first, last):
        n = sample - first
        if gradient:
            _coefficients(coefficient, rows, terms, sample, classes, s, k_at)
        for j in range(classes):
            c = k_at + j * each
            x_at, y_at, w_at = _place(at, 0, n, j), _place(at, 1, n, j), _place(at, 2, n, j)
            mask_at, out_at = _place(at, 3, n, j), _place(at, 4, n, j)
            top = classes - 1 if index else 1
            for begin in range(0, length, LINE):
                size = min(LINE, length - begin)
                seen, y_count, weight, true = spread(s, 0), spread(s, 0), spread(s, 0), spread(s, 0)
                pred, pred2, tp, tp2 = spread(s, 0), spread(s, 0), spread(s, 0), spread(s, 0)
                for t in range(2 * T):
                    store(s, t * LANES, spread(s, 0))
                for i in range(begin, begin + size, LANES):
                    count = begin + size - i
                    label, valid, off = _target(y, y_at + i, k, mask_at + i, masked, count, ignore, top, s)
                    wrong = wrong + select(off, spread(s, 1), 0)
                    here = valid & (label == (j if index else 1))
                    one = select(valid, spread(s, 1), 0)
                    u = one
                    if weighted:
                        u = take(w, w_at + i, count)
                        wrong = wrong + select(u < 0, spread(s, 1), 0)
                        u = select(valid, u, 0)
                    p, slope = u * 0, u * 0
                    if probabilities:
                        z = select(valid, take_number(x, x_at + i, count), 0)
                        side = select(here, z * -1, z)  # > 0: on the wrong side
                        e = exp_negative(magnitude(z) * -1)
                        high = constant(u, 1) / (e + 1)
                        low = e * high
                        p = select(z < 0, low, high)
                        if T:
                            q = select(side < 0, low, high)
                            loss = select(side < 0, 0, side) + log1p(e)
                            limited = select(loss > BIG, BIG, loss)
                        for t in range(T):
                            a = exponents[t, 0]
                            f = _modulated(q, a)
                            if sums:
                                value = select(u == 0, p * 0, u * f * loss)  # a weight of 0: even an infinite loss
                                pos, neg = 2 * t * LANES, (2 * t + 1) * LANES
                                store(s, pos, load(s, pos) + select(here, value, 0))
                                store(s, neg, load(s, neg) + select(here, 0, value))
                            if gradient:  # d (q^a l) / d side = q^a (q + a (1 - q) l)
                                by = select(here, spread(s, s[c + _CLASS + 2 * t]) * -1, s[c + _CLASS + 2 * t + 1])
                                slope = slope + by * u * f * (q + (constant(q, 1) - q) * limited * a)
                        if gradient:
                            slope = low * high * (u * _slope(s, c, here, p)) + slope
                    if gradient:
                        put_number(out, out_at + i, count, slope)
                    if sums:
                        up = u * p
                        seen, y_count = seen + one, y_count + select(here, spread(s, 1), 0)
                        pred, tp = pred + up, tp + select(here, up, 0)
                        if weighted:
                            weight, true = weight + u, true + select(here, u, 0)
                        if squares:
                            up = up * p
                            pred2, tp2 = pred2 + up, tp2 + select(here, up, 0)
                if sums:
                    if not weighted:
                        weight, true = seen, y_count
                    _add_sums(partial, rows, sample, j, seen, y_count, weight, true, pred, pred2, tp, tp2)
                    for t in range(T):
                        _add(partial, terms[t, 1], sample, j, load(s, 2 * t * LANES))
                        _add(partial, terms[t, 1] + 1, sample, j, load(s, (2 * t + 1) * LANES))
    return int(total_of(wrong))
