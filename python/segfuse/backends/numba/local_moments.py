"""local_moments in Numba."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops.local_moments import Window
from .._layout import computed, moments_shape
from ._half import narrow, widen
from ._run import refuses as refuses
from ._run import view
from ._tiles import Array
from ._windows import AT_A, AT_B, G_COV, G_MEAN, G_VAR, MEAN_A, MEAN_B, Sweep


def _planes(x: Tensor) -> Array:
    """``(N, C, depth, height, width)``"""
    missing = 5 - x.ndim
    return view(x.reshape(*x.shape[:2], *[1] * missing, *x.shape[2:]) if missing else x)


def _reader(images: Sequence[Tensor], depth: int) -> Callable[[int, int, int, Array], None]:
    arrays = [_planes(x) for x in images]
    C = images[0].shape[1]

    def read(plane: int, first: int, last: int, out: Array) -> None:
        group, z = divmod(plane, depth)
        for x, to in zip(arrays, out):
            widen(x[group // C, group % C, z, first:last], to)

    return read


def _sweep(images: Sequence[Tensor], window: Window) -> Sweep:
    a = images[0]
    spatial = tuple(a.shape[2:])
    depth = spatial[0] if len(spatial) == 3 else 1
    dtype = np.float64 if computed(a) == torch.float64 else np.float32
    groups = a.shape[0] * a.shape[1]
    return Sweep(window, spatial, groups, dtype, len(images) == 2, _reader(images, depth))


def _centred(sweep: Sweep, valid: bool, first: int, last: int) -> Iterator[tuple[Any, Any]]:
    """Where rows ``first`` to ``last`` hold centres of windows: as an index of these rows, and of all centres,
    ``(groups, *centres)``."""
    rz, ry, rx = (r * valid for r in sweep.radius)
    row = first
    while row < last:
        plane, y = divmod(row, sweep.height)
        end = min(y + last - row, sweep.height)
        group, z = divmod(plane, sweep.depth)
        top, bottom = max(y, ry), min(end, sweep.height - ry)
        if rz <= z < sweep.depth - rz and top < bottom:
            here = slice(row - first + top - y, row - first + bottom - y), slice(rx, sweep.width - rx)
            yield here, (group, z - rz, slice(top - ry, bottom - ry))
        row += end - y


def _by_group(x: Tensor, sweep: Sweep, valid: bool) -> Array:
    """``(groups, *centres)``"""
    sides = (side - 2 * r * valid for side, r in zip((sweep.depth, sweep.height, sweep.width), sweep.radius))
    return view(x).reshape(-1, *sides)


def forward(a: Tensor, b: Tensor | None, window: Window) -> tuple[Tensor, ...]:
    images = [a] if b is None else [a, b]
    shape, number = moments_shape(a, window), 2 if b is None else 5
    out = tuple(torch.empty(shape, dtype=computed(a), device="cpu") for _ in range(number))
    if 0 in shape:
        return out
    sweep = _sweep(images, window)
    results = [_by_group(x, sweep, window.valid) for x in out]

    def use(first: int, last: int, moments: Array) -> None:
        for here, there in _centred(sweep, window.valid, first, last):
            for result, record in zip(results, moments):
                result[there] = record[here]

    sweep.moments(b is not None, use)
    return out


def backward(
    a: Tensor, b: Tensor | None, window: Window, grads: Sequence[Tensor | None], needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    rows = [*grads, *[None] * (5 - len(grads))]

    def gradient(first: Tensor, second: Tensor | None, order: Sequence[int]) -> Tensor:
        return _gradient(first, second, window, [rows[i] for i in order])

    return (
        gradient(a, b, (0, 1, 2, 3, 4)) if needs[0] else None,
        gradient(b, a, (2, 3, 0, 1, 4)) if needs[1] and b is not None else None,
    )


def _gradient(a: Tensor, b: Tensor | None, window: Window, grads: Sequence[Tensor | None]) -> Tensor:
    """Of the first image."""
    out = torch.empty_like(a)
    if 0 in moments_shape(a, window):
        return out.zero_()
    images = [a] if b is None else [a, b]
    sweep = _sweep(images, window)
    adjoint = sweep.records(5)
    rows = adjoint.reshape(5, -1, sweep.length)
    given = [
        (record, factor, None if grad is None else _by_group(grad.contiguous(), sweep, window.valid))
        for record, factor, grad in ((G_MEAN, 1, grads[0]), (G_VAR, 2, grads[1]), (G_COV, 1, grads[4]))
    ]

    beside = window.valid or sweep.length > sweep.width  # that no window is centred on

    def use(first: int, last: int, moments: Array) -> None:
        own = rows[:, first:last]
        own[AT_A] = moments[MEAN_A]
        if b is not None:
            own[AT_B] = moments[MEAN_B]
        for record, factor, grad in given:
            if grad is None or beside:
                own[record] = 0
            if grad is not None:
                for here, there in _centred(sweep, window.valid, first, last):
                    np.multiply(grad[there], factor, out=own[record][here])

    before = sweep.moments(False, use, keep=True, var=False)
    planes = _planes(out)

    def write(plane: int, first: int, last: int, gradient: Array) -> None:
        group, z = divmod(plane, sweep.depth)
        narrow(gradient, planes[group // a.shape[1], group % a.shape[1], z, first:last])

    sweep.back(adjoint, before, b is not None, write)
    return out
