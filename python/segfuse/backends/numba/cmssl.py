"""cmssl in Numba: e of all windows, the sums in a second look, the gradient in one more sweep."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops.cmssl import Cmssl
from ...ops.pixel_stats import Geometry, Tensors
from ._lanes import LANES, counting, load, magnitude, opposite, part, put, root, select, spread, store, take
from ._lanes import total as total_of
from ._run import compiled, run
from ._run import refuses as refuses
from ._tiles import Array
from ._window_losses import Lot, WindowLoss
from ._windows import AT_A, G_MEAN, G_VAR, MEAN_A, MEAN_B, VAR_A, VAR_B

_AXES: dict[str, tuple[int, ...]] = {"batch": (0, 1), "sample": (1,), "class": (0,)}


@part
def _relative(a: Any, mean: Any, var: Any, eps: float, c4: float) -> Any:
    """r(a) = (a - mean + c4) / (std + c4);  e = |r(y) - r(p)|"""
    return (a - mean + c4) / (root(var + eps) + c4)


@compiled
def _errors(
    first: int,
    last: int,
    layout: tuple[int, int, int, int, int, int, int, int, int],
    places: Array,
    partial: Array,
    s: Array,
    p: Array,
    y: Array,
    m: Array,
    error: Array,
    eps: float,
    c4: float,
) -> None:
    """e of rows of windows, 0 where ignored and where no window fits."""
    D, H, W, length, step, _, rz, ry, rx = layout
    for row in range(first, last):
        plane, line = row // H, row % H
        z = plane % D
        inside = rz <= z < D - rz and ry <= line < H - ry
        for i in range(0, length, LANES):
            at, here, count = (row - first) * length + i, places[plane] + line * W + i, W - i
            d = _relative(take(p, here, count), load(s, at + MEAN_A * step), load(s, at + VAR_A * step), eps, c4)
            d = d - _relative(take(y, here, count), load(s, at + MEAN_B * step), load(s, at + VAR_B * step), eps, c4)
            valid = take(m, here, count) > 0
            if rx > 0:
                x = counting(s) + i
                valid = valid & (x >= rx) & (x < W - rx)
            put(error, here, count, select(valid, magnitude(d), 0) if inside else spread(s, 0))


@compiled
def _sums(
    first: int,
    last: int,
    groups: Array,
    pieces: int,
    length: int,
    S: int,
    error: Array,
    m: Array,
    u: Array,
    ce: Array,
    cut: Array,
    partial: Array,
) -> None:
    """sum u e ce and the number of the pixels of a piece that are selected. groups: the place of each."""
    for i in range(first, last):
        group = i // pieces
        begin = i % pieces * length
        total, selected = 0.0, 0.0
        limit = spread(error, cut[group])
        for j in range(begin, min(begin + length, S), LANES):
            at, count = groups[group] + j, min(begin + length, S) - j
            e, weight = take(error, at, count), take(u, at, count)
            f = (take(m, at, count) > 0) & opposite(e <= limit)
            total += total_of(select(f & (weight != 0), weight * e * take(ce, at, count), 0))
            selected += total_of(select(f, spread(error, 1), 0))
        partial[i, 0] = total
        partial[i, 1] = selected


@compiled
def _slopes(
    first: int,
    last: int,
    layout: tuple[int, int, int, int, int, int, int, int, int],
    places: Array,
    partial: Array,
    s: Array,
    p: Array,
    y: Array,
    m: Array,
    u: Array,
    ce: Array,
    adjoint: Array,
    by_p: Array,
    by_ce: Array,
    factor: Array,
    cut: Array,
    eps: float,
    c4: float,
    detach: bool,
) -> None:
    """What rows of windows send back. by_p: what e passes on without a window; by_ce: what the cross-entropy gets."""
    D, H, W, length, step, to_step, rz, ry, rx = layout
    for row in range(first, last):
        plane, line = row // H, row % H
        z = plane % D
        inside = rz <= z < D - rz and ry <= line < H - ry
        k, limit = factor[plane // D], spread(s, cut[plane // D])
        for i in range(0, length, LANES):
            at, to, here, count = (row - first) * length + i, row * length + i, places[plane] + line * W + i, W - i
            mp, vp = load(s, at + MEAN_A * step), load(s, at + VAR_A * step)
            rp = _relative(take(p, here, count), mp, vp, eps, c4)
            d = rp - _relative(take(y, here, count), load(s, at + MEAN_B * step), load(s, at + VAR_B * step), eps, c4)
            e, std = magnitude(d), root(vp + eps)
            valid = take(m, here, count) > 0
            if rx > 0:
                x = counting(s) + i
                valid = valid & (x >= rx) & (x < W - rx)
            if not inside:
                valid = valid ^ valid
            e = select(valid, e, 0)
            selected = (take(m, here, count) > 0) & opposite(e <= limit)
            weight = select(selected, take(u, here, count) * k, 0)
            loss = take(ce, here, count)
            loss = select(loss > 3e38, 0, loss)  # an infinite loss says nothing about e
            sign = select(d > 0, spread(s, 1), select(d < 0, -1, d))
            a = select(selected & valid, weight * loss * sign / (std + c4), 0)
            store(adjoint, to + G_MEAN * to_step, a * -1)
            store(adjoint, to + G_VAR * to_step, select(selected & valid, a * rp / std * -1, 0))
            store(adjoint, to + AT_A * to_step, mp)
            put(by_p, here, count, spread(s, 0) if detach else a)
            put(by_ce, here, count, select(selected, weight * e, 0))


def _threshold(largest: Array, o: Cmssl) -> Array:
    """That e must exceed, of every group."""
    if o.scope == "fixed":
        return np.full(largest.shape, o.cut)
    found: Array = o.cut * largest.max(_AXES[o.scope], keepdims=True) if largest.size else largest
    return np.broadcast_to(found, largest.shape).copy()


def forward(x: Tensors, g: Geometry, o: Cmssl) -> tuple[Tensor, Tensor, int]:
    """Sums ``(2, N, C)``, the thresholds ``(N, C)`` of e and the number of targets and weights out of range."""
    sums, largest, invalid = np.zeros((2, *g.shape[:2])), np.zeros(g.shape[:2]), 0
    loss = WindowLoss(x, g, o.window, o.first_class, True)
    error = np.empty((*g.shape[:2], g.pixels), loss.dtype)
    lots: list[Lot] = []
    for lot in loss.lots():
        invalid += lot.invalid
        for windows in lot.windows():
            own = error[lot.samples.start : lot.samples.stop].reshape(-1)
            images = [t.reshape(-1) for t in (lot.p, lot.y, lot.m)]
            windows.moments(False, False, _errors, *images, own, o.variance_eps, o.c4)
            samples, classes = windows.index()
            largest[samples, classes] = error[samples, classes].max(1)
        lots = [lot]
    threshold = _threshold(largest, o)
    if g.shape[0] * g.shape[1] * g.pixels and len(lots[0].samples) < g.shape[0]:  # that did not fit together
        lots = loss.lots()  # type: ignore[assignment]
    for lot in lots:
        _add_up(lot, error, threshold, sums)
    return torch.from_numpy(sums), torch.from_numpy(threshold), invalid


def _add_up(lot: Lot, error: Array, threshold: Array, sums: Array) -> None:
    g, loss = lot.loss.g, lot.loss
    classes = np.arange(loss.first_class, g.shape[1])
    groups = (np.arange(len(lot.samples))[:, None] * g.shape[1] + classes).reshape(-1) * g.pixels
    samples = slice(lot.samples.start, lot.samples.stop)
    partial = np.zeros((len(groups) * loss.pieces, 2))
    arrays = [t.reshape(-1) for t in (error[samples], lot.m, lot.u, lot.ce)]
    cut = threshold[samples, loss.first_class :].astype(loss.dtype).reshape(-1)
    run(_sums, len(partial), groups, loss.pieces, loss.pixels, g.pixels, *arrays, cut, partial)
    sums[:, samples, loss.first_class :] = (
        partial.reshape(len(lot.samples), len(classes), -1, 2).sum(2).transpose(2, 0, 1)
    )


def backward(x: Tensors, g: Geometry, o: Cmssl, threshold: Tensor, coefficient: Tensor) -> Tensor:
    grad = torch.empty_like(x.input)
    loss = WindowLoss(x, g, o.window, o.first_class, True)
    factor, cut = coefficient.detach().numpy(), threshold.numpy().astype(loss.dtype)
    for lot in loss.lots():
        by_p, by_ce = lot.room(), lot.room()
        images = [t.reshape(-1) for t in (lot.p, lot.y, lot.m, lot.u, lot.ce)]
        for windows in lot.windows():
            adjoint, where = windows.sweep.records(5), windows.index()
            slopes = adjoint, by_p.reshape(-1), by_ce.reshape(-1), factor[where], cut[where]
            before, _ = windows.moments(False, not o.detach, _slopes, *images, *slopes, o.variance_eps, o.c4, o.detach)
            if not o.detach:
                windows.back(adjoint, before, False, by_p, add=True)
        lot.finish(by_p, by_ce, grad)
    return grad
