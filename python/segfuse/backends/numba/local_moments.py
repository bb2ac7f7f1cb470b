"""local_moments in Numba."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...ops.local_moments import Window
from .._layout import computed, moments_shape
from ._half import narrow, widen
from ._run import refuses as refuses
from ._run import run, view
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


def _centres(sweep: Sweep, window: Window) -> tuple[slice, ...]:
    """The pixels that are the centre of a window, of ``(records, groups, depth, height, width)``."""
    return (..., *(slice(r, side - r) if window.valid else slice(None) for r, side in zip(
        sweep.radius, (sweep.depth, sweep.height, sweep.width)
    )))  # fmt: skip


def forward(a: Tensor, b: Tensor | None, window: Window) -> tuple[Tensor, ...]:
    images = [a] if b is None else [a, b]
    shape, number = moments_shape(a, window), 2 if b is None else 5
    if 0 in shape:
        return tuple(torch.empty(shape, dtype=computed(a)) for _ in range(number))
    sweep = _sweep(images, window)
    found = sweep.records(number)
    sweep.moments(found, b is not None)
    inside = sweep.inside(found).reshape(number, -1, sweep.depth, sweep.height, sweep.width)[_centres(sweep, window)]
    out = torch.empty((number, *shape), dtype=computed(a))
    to = view(out).reshape(inside.shape)

    def copy(first: int, last: int) -> None:
        for i in range(first, last):
            to[:, i] = inside[:, i]

    run(copy, to.shape[1])
    return tuple(out)


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
    moments = sweep.records(2 * len(images))
    before = sweep.moments(moments, False)
    adjoint = sweep.records(5)
    shape = (-1, sweep.depth, sweep.height, sweep.width)
    means, back = (sweep.inside(x).reshape(len(x) // sweep.step, *shape) for x in (moments, adjoint))
    centres = _centres(sweep, window)
    given = [None if grad is None else view(grad.contiguous()).reshape(means[0][centres].shape) for grad in grads]

    def fill(first: int, last: int) -> None:
        for i in range(first, last):
            for record, grad, factor in ((G_MEAN, given[0], 1), (G_VAR, given[1], 2), (G_COV, given[4], 1)):
                to = back[record, i]
                if window.valid or grad is None:
                    to[...] = 0
                if grad is not None:
                    np.multiply(grad[i], factor, out=to[centres])
            back[AT_A, i] = means[MEAN_A, i]
            if b is not None:
                back[AT_B, i] = means[MEAN_B, i]

    run(fill, back.shape[1])
    planes = _planes(out)

    def write(plane: int, first: int, last: int, gradient: Array) -> None:
        group, z = divmod(plane, sweep.depth)
        narrow(gradient, planes[group // a.shape[1], group % a.shape[1], z, first:last])

    sweep.back(adjoint, before, b is not None, write)
    return out
