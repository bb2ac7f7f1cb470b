"""ssim in Numba: moments of all windows, then what they add up to and send back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...ops.pixel_stats import Geometry, Tensors
from ...ops.ssim import Ssim
from ._lanes import LANES, constant, counting, load, select, spread, store, take
from ._lanes import total as total_of
from ._run import compiled
from ._run import refuses as refuses
from ._tiles import Array
from ._window_losses import Lot, WindowLoss
from ._windows import AT_A, AT_B, COV, G_COV, G_MEAN, G_VAR, MEAN_A, MEAN_B, VAR_A, VAR_B


@compiled
def _centres(
    first: int,
    last: int,
    layout: tuple[int, int, int, int, int, int, int, int, int],
    places: Array,
    partial: Array,
    s: Array,
    u: Array,
    adjoint: Array,
    factor: Array,
    c1: float,
    c2: float,
    contrast: bool,
) -> None:
    """SSIM = L S with L = (2 mp my + c1) / (mp^2 + my^2 + c1) and S = (2 cov + c2) / (vp + vy + c2).

    Of rows of windows. partial: sum u SSIM and sum u of every row; adjoint: what goes back, if there is any.
    """
    D, H, W, length, step, to_step, rz, ry, rx = layout
    for row in range(first, last):
        plane, y = row // H, row % H
        z = plane % D
        inside = rz <= z < D - rz and ry <= y < H - ry
        k = factor[plane // D]
        total, seen = spread(s, 0), spread(s, 0)
        for i in range(0, length, LANES):
            at, to = (row - first) * length + i, row * length + i
            weight = take(u, places[plane] + y * W + i, W - i) if inside else spread(s, 0)
            if rx > 0:
                x = counting(s) + i
                weight = select((x >= rx) & (x < W - rx), weight, 0)
            mp, vp = load(s, at + MEAN_A * step), load(s, at + VAR_A * step)
            my, vy = load(s, at + MEAN_B * step), load(s, at + VAR_B * step)
            narrow, bright = constant(mp, 1) / (vp + vy + c2), constant(mp, 1) / (mp * mp + my * my + c1)
            similar = (load(s, at + COV * step) * 2 + c2) * narrow
            light = (mp * my * 2 + c1) * bright
            shade = constant(mp, 1) if contrast else light
            total = total + select(weight == 0, 0, weight * similar * shade)
            seen = seen + weight
            if len(adjoint):
                g = weight * k
                slope = g * 2 * shade * narrow
                mean = g * similar * 2 * (my - mp * light) * bright
                none = weight == 0
                store(adjoint, to + G_MEAN * to_step, select(none, 0, mean * (0 if contrast else 1)))
                store(adjoint, to + G_VAR * to_step, select(none, 0, slope * similar * -1))
                store(adjoint, to + G_COV * to_step, select(none, 0, slope))
                store(adjoint, to + AT_A * to_step, mp)
                store(adjoint, to + AT_B * to_step, my)
        partial[row, 0] = total_of(total)
        partial[row, 1] = total_of(seen)


def _pass(lot: Lot, o: Ssim, sums: Array, factor: Array, grad: Tensor | None) -> None:
    by_p = lot.room(grad is not None)
    for windows in lot.windows():
        samples, classes = windows.index()
        adjoint = windows.sweep.records(5 if grad is not None else 0)
        settings = lot.u.reshape(-1), adjoint, factor[samples, classes], o.c1, o.c2, o.contrast
        before, sums[:, samples, classes] = windows.moments(True, grad is not None, _centres, *settings)
        if grad is not None:
            windows.back(adjoint, before, True, by_p, add=False)
    if grad is not None:
        lot.finish(by_p, None, grad)


def forward(x: Tensors, g: Geometry, o: Ssim, ahead: bool) -> tuple[Tensor, int, Tensor | None]:
    """Sums ``(2, N, C)``, the number of targets and weights out of range and, if asked, the gradient of every group by
    its sum."""
    sums, invalid = np.zeros((2, *g.shape[:2])), 0
    grad = torch.empty_like(x.input) if ahead else None
    for lot in WindowLoss(x, g, o.window, o.first_class, False).lots():
        invalid += lot.invalid
        _pass(lot, o, sums, np.ones(g.shape[:2]), grad)
    return torch.from_numpy(sums), invalid, grad


def backward(x: Tensors, g: Geometry, o: Ssim, coefficient: Tensor) -> Tensor:
    grad = torch.empty_like(x.input)
    for lot in WindowLoss(x, g, o.window, o.first_class, False).lots():
        _pass(lot, o, np.zeros((2, *g.shape[:2])), coefficient.detach().numpy(), grad)
    return grad
