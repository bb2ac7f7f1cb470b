"""disk_sums in Numba: a ball is a stack of row segments, each the difference of two prefix sums of its row."""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops._hard_pair import HardPair
from ._hard_pair import Pair
from ._hard_pair import refuses as refuses
from ._lanes import LANES, convert, load, most, put, select, spread, store, take
from ._lanes import total as total_of
from ._run import compiled, run
from ._tiles import Array


@compiled
def _prefix_sums(first: int, last: int, ones: Array, W: int, margin: int, pitch: int, out: Array) -> None:
    """The ones of a row before each pixel, from ``margin`` before the row to as much behind it. They may wrap: only
    their differences are read."""
    for row in range(first, last):
        count = 0
        for i in range(pitch):
            x = i - margin - 1
            if 0 <= x < W:
                count += ones[row * W + x]
            out[row * pitch + i] = count


@compiled
def _rows(
    first: int,
    last: int,
    sums: Array,
    p: Array,
    y: Array,
    u: Array,
    sides: tuple[int, int, int],
    margin: int,
    pitch: int,
    segments: Array,
    balls: Array,
    weights: Array,
    partial: Array,
    grad: Array,
    counts: Array,
) -> None:
    """sum u (p - y)^2 (w_f p + w_e y) of rows.

    sums: prefix sums of ones, of the target and of the prediction, each in a third of the bits. segments: dz, dy and
    half the length of every row of a ball; balls: where its rows end, and pixels. counts: room for what the balls of a
    row hold.
    """
    D, H, W = sides
    third = 10 if sums.itemsize == 4 else 21
    low = (1 << third) - 1
    width = (W + LANES - 1) // LANES * LANES
    for row in range(first, last):
        z, line = row // H, row % H
        for i in range(0, len(balls) * width, LANES):
            store(counts, i, spread(counts, 0))
        begin = 0
        for k in range(len(balls)):
            for j in range(begin, balls[k, 0]):
                zz, yy, half = z + segments[j, 0], line + segments[j, 1], segments[j, 2]
                if 0 <= zz < D and 0 <= yy < H:
                    here = (zz * H + yy) * pitch + margin
                    before, behind = here - half, here + half + 1
                    for i in range(k * width, (k + 1) * width, LANES):
                        found = load(sums, behind) - load(sums, before)
                        store(counts, i, load(counts, i) + found)
                        before, behind = before + LANES, behind + LANES
            begin = balls[k, 0]
        sum_ = spread(p, 0)
        for i in range(0, W, LANES):
            at, count = row * W + i, W - i
            false, empty = spread(p, 0), spread(p, 0)
            for k in range(len(balls)):
                size, found = balls[k, 1], load(counts, k * width + i)
                every, own, hit = found & low, (found >> third) & low, (found >> 2 * third) & low
                a = most(convert(p, every - own) / size - 0.5, 0) + most(convert(p, hit) / size - 0.5, 0)
                b = most(convert(p, own) / size - 0.5, 0) + most(convert(p, every - hit) / size - 0.5, 0)
                false, empty = false + a * weights[k], empty + b * weights[k]
            probability, target, weight = take(p, at, count), take(y, at, count), take(u, at, count)
            off = probability - target
            price = false * probability + empty * target
            none = weight == 0
            sum_ = sum_ + select(none, 0, weight * (off * off * price))
            if len(grad):
                put(grad, at, count, select(none, 0, weight * (off * 2 * price + off * off * false)))
        partial[row] = total_of(sum_)


def _segments(radii: tuple[int, ...], dims: int) -> tuple[Array, Array]:
    """The rows of every ball, and the balls."""
    found: list[tuple[int, int, int]] = []
    balls = []
    for r in radii:
        begin = len(found)
        for dz in range(-r, r + 1) if dims > 2 else (0,):
            reach = isqrt(r * r - dz * dz) if dims > 1 else 0
            found += [(dz, dy, isqrt(r * r - dz * dz - dy * dy)) for dy in range(-reach, reach + 1)]
        balls.append((len(found), sum(2 * w + 1 for _, _, w in found[begin:])))
    return np.array(found, np.int64), np.array(balls, np.int64)


def forward(
    pair: HardPair, with_gradient: bool, *, radii: tuple[int, ...], alpha: float, hard: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Sums ``(N, C)`` and their derivative by p. ``hard``: int16 predicted class numbers, or p > 1/2."""
    sums = np.zeros(pair.groups)
    grad = torch.zeros_like(pair.p) if with_gradient else None
    if not sums.size or not pair.p.numel():
        return torch.from_numpy(sums), grad
    of = Pair(pair)
    out = None if grad is None else of._spatial(grad)
    chosen = None if hard is None else of._spatial(hard)
    margin, (D, H, W) = max(radii), of.sides
    pitch = -(-W // LANES) * LANES + 2 * margin + 1
    segments, balls = _segments(radii, of.dims)
    dtype: Any = np.int32 if balls[:, 1].max() < 1 << 10 else np.int64
    third = 10 if dtype == np.int32 else 21
    weights = np.array([float(r) ** alpha for r in radii])

    def rows(*arguments: Any) -> None:
        _rows(*arguments, np.empty(len(balls) * -(-W // LANES) * LANES, dtype))

    for group in range(sums.size):
        n, c = divmod(group, of.groups[1])
        p, y, valid, u = of.of(n, c)
        guess = (p > 0.5 if chosen is None else chosen[n, 0] == c + of.first) & valid
        ones = 1 + ((y > 0).astype(dtype) << third) + (guess.astype(dtype) << 2 * third)
        running = np.zeros(D * H * pitch + LANES, dtype)
        run(_prefix_sums, D * H, ones.reshape(-1), W, margin, pitch, running)
        partial = np.zeros(D * H)
        to = np.empty(0, of.dtype) if out is None else out[n, c + of.first].reshape(-1)
        flat = [t.reshape(-1) for t in (p, y, u)]
        run(rows, D * H, running, *flat, of.sides, margin, pitch, segments, balls, weights, partial, to)
        sums[n, c] = partial.sum()
    return torch.from_numpy(sums), grad
