"""pairwise_hausdorff in Numba: over the points for their means, then over the pixels; no pair is stored.

The steps are those of csrc/cpp/pairwise_hausdorff_kernels.cpp, which says how powers are kept from overflowing.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops._hard_pair import HardPair
from .._layout import pairwise_mean
from ._hard_pair import Pair
from ._hard_pair import refuses as refuses
from ._lanes import LANES, counting, exp_negative, least, log, part, put, root, select, smallest, spread, take
from ._lanes import total as total_of
from ._run import compiled, run
from ._tiles import Array

HARMONIC, POWER_MEAN, LEAST, POWER_MIN = range(4)
BLOCK = 64  # points whose contributions to a pixel are added before the next
SLAB = 1 << 10  # pixels, each of which meets every point


@part
def _value(q: Any, d: Any, d_max: float, eps: float, power_min: bool) -> Any:
    """g = q d + (1 - q) d_max + eps; for the minimum of powers (d + eps) / (q^4 + eps / d_max)"""
    if power_min:
        return (d + eps) / (q * q * (q * q) + eps / d_max)
    return q * d + ((q * -1 + 1) * d_max + eps)  # 1 - q is exact near 1


@part
def _power(x: Any, a: float) -> Any:
    """x^a for 0 < x <= 1"""
    return exp_negative(log(x) * a)


@compiled
def _over_points(
    first: int,
    last: int,
    points: Array,
    q: Array,
    u: Array,
    sides: tuple[int, int, int],
    d_max: float,
    eps: float,
    exponent: float,
    mean: int,
    found: Array,
) -> None:
    """found: least value, the first pixel that attains it, and sum u (g / least)^exponent of every point."""
    D, H, W = sides
    column = counting(q)
    for t in range(first, last):
        low, where = np.inf, -1.0
        if mean == HARMONIC:
            low = 1.0  # no reciprocal of g >= eps overflows
        else:
            for row in range(D * H):
                dz, dy = row // H - points[t, 0], row % H - points[t, 1]
                square = dz * dz + dy * dy
                for i in range(0, W, LANES):
                    at, count = row * W + i, W - i
                    dx = column + (i - points[t, 2])
                    value = _value(take(q, at, count), root(dx * dx + square), d_max, eps, mean == POWER_MIN)
                    value = select(take(u, at, count) > 0, value, np.inf)
                    lowest = smallest(value)
                    if lowest < low:
                        low = lowest
                        where = at + smallest(select(value == lowest, column, LANES))
        total = 0.0
        if mean in (HARMONIC, POWER_MEAN):
            for row in range(D * H):
                dz, dy = row // H - points[t, 0], row % H - points[t, 1]
                square = dz * dz + dy * dy
                sum_ = spread(q, 0)
                for i in range(0, W, LANES):
                    at, count = row * W + i, W - i
                    dx = column + (i - points[t, 2])
                    value = _value(take(q, at, count), root(dx * dx + square), d_max, eps, False)
                    value = spread(q, low) / value
                    if mean == POWER_MEAN:
                        value = _power(value, -exponent)
                    weight = take(u, at, count)
                    sum_ = sum_ + select(weight > 0, weight * value, 0)
                total += total_of(sum_)
        found[t, 0], found[t, 1], found[t, 2] = low, where, total


@compiled
def _over_pixels(
    first: int,
    last: int,
    slab: int,
    points: Array,
    lowest: Array,
    factors: Array,
    q: Array,
    u: Array,
    sides: tuple[int, int, int],
    d_max: float,
    eps: float,
    exponent: float,
    mean: int,
    own: float,
    partial: Array,
    grad: Array,
) -> None:
    """sum u q d(x, nearest point) of slabs of rows, and what every pixel's q does to the loss."""
    D, H, W = sides
    through_all = len(grad) > 0 and mean in (HARMONIC, POWER_MEAN)
    column = counting(q)
    for s in range(first, last):
        total = 0.0
        for row in range(s * slab, min((s + 1) * slab, D * H)):
            sum_ = spread(q, 0)
            for i in range(0, W, LANES):
                at, count = row * W + i, W - i
                p, weight = take(q, at, count), take(u, at, count)
                low, slope = spread(q, np.inf), spread(q, 0)
                for begin in range(0, len(points), BLOCK):
                    block = spread(q, 0)
                    for t in range(begin, min(begin + BLOCK, len(points))):
                        dz, dy = row // H - points[t, 0], row % H - points[t, 1]
                        dx = column + (i - points[t, 2])
                        square = dx * dx + (dz * dz + dy * dy)
                        low = least(square, low)
                        if through_all:
                            d = root(square)
                            ratio = spread(q, lowest[t]) / _value(p, d, d_max, eps, False)
                            ratio = ratio * ratio if mean == HARMONIC else _power(ratio, 1 - exponent)
                            block = block + ratio * (d - d_max) * factors[t]
                    slope = slope + block
                low = root(low)
                sum_ = sum_ + select(weight > 0, weight * p * low, 0)
                if len(grad):
                    put(grad, at, count, select(weight > 0, weight * (low * own + slope), 0))
            total += total_of(sum_)
        partial[s] = total


class _Group:
    """The loss of one group, and its derivative in ``out`` if that is asked for."""

    def __init__(self, of: Pair, n: int, c: int, given: Array | None) -> None:
        p, y, _, u = of.of(n, c)
        self.sides, self.p, self.u = of.sides, np.ascontiguousarray(p).reshape(-1), u.reshape(-1)
        if given is None:
            chosen = (y > 0) & (u != 0)
            self.points, self.shares = np.argwhere(chosen).astype(np.float64), u[chosen].astype(np.float64)
        else:
            self.points = np.zeros((len(given), 3))
            self.points[:, 3 - of.dims :] = given
            self.shares = np.ones(len(given))
        self.d_max = sqrt(sum(side**2 for side in of.sides[3 - of.dims :]))

    def loss(self, alpha: float, eps: float, mean: int, out: Array) -> float:
        weights = float(self.u.sum(dtype=np.float64))
        if weights <= 0 or self.shares.sum() <= 0:  # a NaN goes on
            return self.d_max if weights > 0 else weights
        here = self.p, self.u, self.sides, self.d_max, eps, alpha, mean
        found = np.empty((len(self.points), 3))
        run(_over_points, len(found), self.points, *here, found)
        lowest, where, sums = found.T
        share = self.shares / self.shares.sum()
        if mean in (HARMONIC, POWER_MEAN):
            ratio = (sums / weights) ** (1 / alpha)
            value = float((share * lowest * ratio).sum())
            factors = share * ratio ** (1 - alpha) / weights
        else:
            value = float((share * (np.minimum(lowest, self.d_max) if mean == POWER_MIN else lowest)).sum())
            factors = share
        kept = self.u > 0
        mass = float((self.u * self.p).sum(where=kept, dtype=np.float64)) + eps
        D, H, W = self.sides
        slab = max(1, SLAB // W)
        partial = np.zeros(-(-D * H // slab))
        run(
            _over_pixels, len(partial), slab, self.points, np.ascontiguousarray(lowest), factors, *here, 1 / mass,
            partial, out,
        )  # fmt: skip
        nearest = float(partial.sum()) / mass
        if len(out):
            out += np.where(kept, self.u * out.dtype.type(-nearest / mass), 0)
            if mean in (LEAST, POWER_MIN):
                self._to_least(lowest, where, factors, mean == POWER_MIN, eps, out)
        return nearest + value

    def _to_least(self, lowest: Array, where: Array, factors: Array, power_min: bool, eps: float, out: Array) -> None:
        """A minimum passes its derivative to the pixel that attains it."""
        there = where >= 0  # nothing but NaN attains nothing
        at = where[there].astype(np.int64)
        d = np.sqrt(((np.stack(np.unravel_index(at, self.sides), 1) - self.points[there]) ** 2).sum(1))
        if power_min:
            q = self.p[at].astype(np.float64)
            slope = -(d + eps) * 4 * q**3 / (q**4 + eps / self.d_max) ** 2
            slope = np.where(lowest[there] <= self.d_max, slope, 0)
        else:
            slope = d - self.d_max
        np.add.at(out, at, (factors[there] * slope).astype(out.dtype))


def forward(
    pair: HardPair,
    with_gradient: bool,
    *,
    alpha: float,
    eps: float,
    form: str,
    points: tuple[Tensor, ...] | None,
) -> tuple[Tensor, Tensor | None]:
    """Losses ``(N, C)`` and their derivative by p."""
    losses = np.zeros(pair.groups)
    grad = torch.zeros_like(pair.p) if with_gradient else None
    if losses.size and pair.p.numel():
        of = Pair(pair)
        out = None if grad is None else of._spatial(grad)
        for i in range(losses.size):
            n, c = divmod(i, of.groups[1])
            group = _Group(of, n, c, None if points is None else points[i].numpy())
            to = np.empty(0, of.dtype) if out is None else out[n, c + of.first].reshape(-1)
            losses[n, c] = group.loss(alpha, eps, pairwise_mean(alpha, form), to)
    return torch.from_numpy(losses), grad
