"""disk_sums in Numba: a ball is a stack of row segments, each the difference of two prefix sums of its row."""

from __future__ import annotations

from math import isqrt

import numpy as np
import torch
from torch import Tensor

from ...ops._hard_pair import HardPair
from ._hard_pair import Pair
from ._hard_pair import refuses as refuses
from ._lanes import LANES, convert, load, most, put, select, spread, take
from ._lanes import total as total_of
from ._run import compiled, run
from ._tiles import Array


@compiled
def _prefix_sums(first: int, last: int, images: Array, W: int, margin: int, pitch: int, out: Array) -> None:
    """How many ones of a row lie before each pixel, from ``margin`` before the row to as much behind it."""
    for row in range(first, last):
        count = 0
        for i in range(pitch):
            x = i - margin - 1
            if 0 <= x < W:
                count += images[row * W + x]
            out[row * pitch + i] = count


@compiled
def _rows(
    first: int,
    last: int,
    true: Array,
    guess: Array,
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
) -> None:
    """sum u (p - y)^2 (w_f p + w_e y) of rows.

    true, guess: prefix sums of target and prediction; a row of all ones comes last. segments: dz, dy and half the
    length of every row of a ball; balls: radius, where its rows end, and pixels.
    """
    D, H, W = sides
    every = D * H * pitch + margin
    for row in range(first, last):
        z, line = row // H, row % H
        sum_ = spread(p, 0)
        for i in range(0, W, LANES):
            at, count = row * W + i, W - i
            false, empty = spread(p, 0), spread(p, 0)
            begin = 0
            for k in range(len(balls)):
                r, end, size = balls[k, 0], balls[k, 1], balls[k, 2]
                own = hit = rest = spread(true, 0)
                for j in range(begin, end):
                    zz, yy, w = z + segments[j, 0], line + segments[j, 1], segments[j, 2]
                    if 0 <= zz < D and 0 <= yy < H:
                        here = (zz * H + yy) * pitch + i + margin
                        own = own + (load(true, here + w + 1) - load(true, here - w))
                        hit = hit + (load(guess, here + w + 1) - load(guess, here - w))
                        if i < r or i + LANES + r > W:
                            rest = rest + (load(true, every + i + w + 1) - load(true, every + i - w))
                        else:
                            rest = rest + (2 * w + 1)
                begin = end
                a = most(convert(p, rest - own) / size - 0.5, 0) + most(convert(p, hit) / size - 0.5, 0)
                b = most(convert(p, own) / size - 0.5, 0) + most(convert(p, rest - hit) / size - 0.5, 0)
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
        balls.append((r, len(found), sum(2 * w + 1 for _, _, w in found[begin:])))
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
    dtype = np.int16 if max(W, balls[:, 2].max()) < 1 << 15 else np.int32
    weights = np.array([float(r) ** alpha for r in radii])
    for group in range(sums.size):
        n, c = divmod(group, of.groups[1])
        p, y, valid, u = of.of(n, c)
        guess = (p > 0.5 if chosen is None else chosen[n, 0] == c + of.first) & valid
        counts = []
        for image in (y > 0, guess):
            ones = np.append(image.reshape(-1).view(np.uint8), np.ones(W, np.uint8))
            counts.append(np.empty((D * H + 1) * pitch + LANES, dtype))
            run(_prefix_sums, D * H + 1, ones, W, margin, pitch, counts[-1])
        partial = np.zeros(D * H)
        to = np.empty(0, of.dtype) if out is None else out[n, c + of.first].reshape(-1)
        flat = [t.reshape(-1) for t in (p, y, u)]
        run(_rows, D * H, *counts, *flat, of.sides, margin, pitch, segments, balls, weights, partial, to)
        sums[n, c] = partial.sum()
    return torch.from_numpy(sums), grad
