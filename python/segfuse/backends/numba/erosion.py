"""erosion in Numba: one group after the other, and of a group only the rows where an error still lives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops._hard_pair import HardPair
from ...ops.erosion import NORMS
from ._hard_pair import Pair
from ._hard_pair import refuses as refuses
from ._lanes import LANES, counting, largest, least, load, most, part, select, smallest, some, spread, store
from ._lanes import total as total_of
from ._run import compiled, run
from ._tiles import Array

MINMAX, DOUBLE = NORMS.index("minmax"), NORMS.index("double")


@part
def _cross_mean(field: Any, at: int, row: int, plane: int) -> Any:
    """Of a pixel and its face neighbours. row, plane: how far the next are, or 0."""
    total = load(field, at) + (load(field, at - 1) + load(field, at + 1))
    if row:
        total = total + (load(field, at - row) + load(field, at + row))
    if plane:
        total = total + (load(field, at - plane) + load(field, at + plane))
    return total / (7 if plane else 5 if row else 3)


@compiled
def _touched(alive: Array, k: int, z: int, y: int, around: tuple[int, int]) -> bool:
    """Whether a row has a neighbour that is alive. alive: rows with those around them."""
    found = alive[k, z, y] != 0
    if around[1]:
        found = found or alive[k, z, y - 1] != 0 or alive[k, z, y + 1] != 0
    if around[0]:
        found = found or alive[k, z - 1, y] != 0 or alive[k, z + 1, y] != 0
    return found


@compiled
def _erode(
    b: Array,
    size: int,
    u: Array,
    layout: tuple[int, int, int, int, int, int],
    steps: int,
    alpha: float,
    norm: int,
    sent: Array,
    out: Array,
    alive: Array,
    bounds: Array,
) -> float:
    """sum_k k^alpha sum u b_k. b: b_0 of ``size`` numbers and room for every other; sent (2 size), out: its derivative
    by b_0, if there is room for it; alive, bounds: 0, of every erosion."""
    D, H, W, pz, py, pitch = layout
    row, plane = pitch * py, pitch * (H + 2 * py) * pz
    column = counting(b)
    value = 0.0
    for k in range(steps + 1):
        low, high = spread(b, np.inf), spread(b, -np.inf)
        everywhere = True
        if k:
            b[k * size : (k + 1) * size] = 0
        for z in range(pz, D + pz):
            for y in range(py, H + py):
                here = (z * (H + 2 * py) + y) * pitch + 1
                if k and not _touched(alive, k - 1, z, y, (pz, py)):
                    everywhere = False
                    continue
                living = False
                for i in range(0, W, LANES):
                    at = k * size + here + i
                    if k:
                        e = _cross_mean(b, at - size, row, plane) - 0.5
                        there = column < W - i
                        e = select(there, select(e < 0, 0, e), 0)
                        store(b, at, e)
                        low, high = least(select(there, e, np.inf), low), most(select(there, e, -np.inf), high)
                    living = living or some(load(b, at) != 0)
                alive[k, z, y] = living
        if k == 0:
            continue
        lowest, highest = smallest(low) if everywhere else min(smallest(low), 0), max(largest(high), 0)
        stretch = norm == MINMAX and highest != lowest
        bounds[k, 0], bounds[k, 1] = lowest, highest
        scale = (highest - lowest) if stretch else (0.5 if norm == DOUBLE else 1.0)
        power, total = float(k) ** alpha, 0.0
        for z in range(pz, D + pz):
            for y in range(py, H + py):
                if not alive[k, z, y] and not (stretch and lowest > 0):
                    continue
                here = (z * (H + 2 * py) + y) * pitch + 1
                sum_ = spread(b, 0)
                for i in range(0, W, LANES):
                    at = k * size + here + i
                    e = (load(b, at) - lowest) / scale if stretch else load(b, at) / scale
                    e = select(column < W - i, e, 0)
                    store(b, at, e)
                    sum_ = sum_ + load(u, here + i) * e
                total += total_of(sum_)
        value += power * total
    if not len(out):
        return value
    for k in range(steps, -1, -1):
        back, ahead = (k % 2) * size, (1 - k % 2) * size
        lowest, highest = bounds[k, 0], bounds[k, 1]
        stretch = norm == MINMAX and highest != lowest
        power = float(k) ** alpha if k else 0.0
        by, weighted, at_high, at_low = 0.0, 0.0, 0.0, 0.0
        for z in range(pz, D + pz):
            for y in range(py, H + py):
                here = (z * (H + 2 * py) + y) * pitch + 1
                own = k == 0 or alive[k, z, y] or lowest > 0
                near = k < steps and _touched(alive, k + 1, z, y, (pz, py))
                sum_, product, tops, bottoms = spread(b, 0), spread(b, 0), spread(b, 0), spread(b, 0)
                for i in range(0, W, LANES):
                    g = spread(b, 0)
                    if own:
                        if near:
                            g = _cross_mean(sent, ahead + here + i, row, plane)
                        g = select(column < W - i, g + load(u, here + i) * power, 0)
                        if stretch:
                            e = load(b, k * size + here + i)
                            sum_ = sum_ + g
                            product = product + g * e
                            tops = tops + select(e == 1, spread(b, 1), 0)
                            bottoms = bottoms + select((e == 0) & (column < W - i), spread(b, 1), 0)
                    if k:
                        store(sent, back + here + i, g)
                    else:
                        store(out, here + i, g)
                if stretch and own:
                    by += total_of(sum_)
                    weighted += total_of(product)
                    at_high += total_of(tops)
                    at_low += total_of(bottoms)
        if k == 0:
            return value
        scale = (highest - lowest) if stretch else (0.5 if norm == DOUBLE else 1.0)
        to_high = -weighted / scale / at_high if stretch else 0.0  # what the bounds pass on to pixels that attain them
        to_low = (weighted - by) / scale / at_low if stretch and at_low > 0 else 0.0
        for z in range(pz, D + pz):
            for y in range(py, H + py):
                if not alive[k, z, y] and not lowest > 0:
                    continue
                here = (z * (H + 2 * py) + y) * pitch + 1
                for i in range(0, W, LANES):
                    e, g = load(b, k * size + here + i), load(sent, back + here + i) / scale
                    if stretch:
                        g = g + select(e == 1, spread(b, to_high), 0)
                    if lowest > 0 and stretch:
                        g = select(column < W - i, g + select(e == 0, spread(b, to_low), 0), 0)
                    else:
                        g = select(e <= 0, 0, g)
                    store(sent, back + here + i, g)
    return value


def forward(
    pair: HardPair, with_gradient: bool, *, steps: int, alpha: float, norm: str
) -> tuple[Tensor, Tensor | None]:
    """Sums ``(N, C)`` and their derivative by p."""
    sums = np.zeros(pair.groups)
    grad = torch.zeros_like(pair.p) if with_gradient else None
    if not sums.size or not pair.p.numel():
        return torch.from_numpy(sums), grad
    of = Pair(pair)
    out = None if grad is None else of._spatial(grad)

    def body(first: int, last: int) -> None:
        size = of.field(None).size
        b = np.empty((steps + 1) * size, of.dtype)
        b[:size] = 0
        sent, found = (np.zeros(m * size if with_gradient else 0, of.dtype) for m in (2, 1))
        for group in range(first, last):
            n, c = divmod(group, of.groups[1])
            p, y, valid, u = of.of(n, c)
            off = np.where(valid, p - y, 0)
            np.multiply(off, off, out=of.inside(b[:size]))
            alive = np.zeros((steps + 1, *of.padded[:2]), np.uint8)
            sums[n, c] = _erode(
                b, size, of.field(u), of.layout, steps, alpha, NORMS.index(norm), sent, found, alive,
                np.zeros((steps + 1, 2)),
            )  # fmt: skip
            if out is not None:
                off *= 2
                np.multiply(off, of.inside(found), out=out[n, c + of.first])

    run(body, sums.size)
    return torch.from_numpy(sums), grad
