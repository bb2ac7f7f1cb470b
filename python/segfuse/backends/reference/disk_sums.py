"""The definition of disk_sums, written for reading."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops._hard_pair import HardPair
from ._hard_pair import refuses as refuses
from ._hard_pair import with_derivative


def sums(pair: HardPair, *, radii: tuple[int, ...], alpha: float, hard: Tensor | None) -> Tensor:
    """``(N, C)``: sum over pixels of u (p - y)^2 (w_f p + w_e y)."""
    p, y = pair.p[:, pair.first :], pair.y
    if p.numel() == 0:
        return p.sum() + torch.zeros(pair.groups, dtype=torch.float64, device=p.device)
    w_f, w_e = _weights(y, _predicted(pair, hard), radii, alpha)
    term = torch.where(pair.valid, (p - y) ** 2 * (w_f * p + w_e * y), 0)
    return (pair.u * term).flatten(2).sum(2, dtype=torch.float64)


def _predicted(pair: HardPair, hard: Tensor | None) -> Tensor:
    """0 or 1 for every pixel of every group; 0 where ignored."""
    p = pair.p.detach()[:, pair.first :]
    q = p > 0.5
    if hard is not None:
        q = hard == torch.arange(pair.first, pair.p.shape[1], device=p.device).reshape(1, -1, *[1] * (p.ndim - 2))
    return (q & pair.valid).to(p.dtype)


def _weights(y: Tensor, q: Tensor, radii: tuple[int, ...], alpha: float) -> tuple[Tensor, Tensor]:
    """w_f of false positives, w_e of false negatives."""
    w_f, w_e = torch.zeros_like(y), torch.zeros_like(y)
    for r in radii:
        w_f += r**alpha * (_above_half(1 - y, r) + _above_half(q, r))
        w_e += r**alpha * (_above_half(y, r) + _above_half(1 - q, r))
    return w_f, w_e


def _above_half(x: Tensor, r: int) -> Tensor:
    """max(0, mean over the ball of radius r - 1/2), 0 outside the image."""
    dims = x.ndim - 2
    axis = torch.arange(-r, r + 1, device=x.device)
    squares = torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij")).square().sum(0)
    ball = (squares <= r * r).to(x.dtype)[None, None]
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    count = convolve(x.reshape(-1, 1, *x.shape[2:]), ball, padding=r)
    return (count.reshape(x.shape) / ball.sum() - 0.5).clamp(min=0)


def forward(
    pair: HardPair, with_gradient: bool, *, radii: tuple[int, ...], alpha: float, hard: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    return with_derivative(pair, with_gradient, partial(sums, radii=radii, alpha=alpha, hard=hard))
