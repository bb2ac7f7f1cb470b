"""The definition of pairwise_hausdorff, written for reading. It stores all pairs of pixels and points."""

from __future__ import annotations

from functools import partial
from math import inf, sqrt

import torch
from torch import Tensor

from ...ops._hard_pair import HardPair
from ._hard_pair import refuses as refuses
from ._hard_pair import with_derivative


def losses(pair: HardPair, *, alpha: float, eps: float, form: str, points: tuple[Tensor, ...] | None) -> Tensor:
    """``(N, C)``: the weighted Hausdorff distance of every group."""
    p, y, u = pair.p[:, pair.first :], pair.y, pair.u
    N, C = pair.groups
    if p.numel() == 0:
        return p.sum() + torch.zeros(pair.groups, dtype=torch.float64, device=p.device)
    d_max = sqrt(sum(side**2 for side in p.shape[2:]))
    pixels = torch.ones(p.shape[2:], device=p.device).nonzero().to(p.dtype)  # (S, dims) coordinates
    found = []
    for group in range(N * C):
        n, c = divmod(group, C)
        q, weight = p[n, c].flatten(), u[n, c].flatten()
        if points is None:
            chosen = (y[n, c].flatten() > 0) & (weight != 0)
            t, share = pixels[chosen], weight[chosen]
        else:
            t = points[group].to(q.device, q.dtype)
            share = torch.ones(len(t), dtype=q.dtype, device=q.device)
        total = weight.sum()
        if total == 0 or len(t) == 0:
            found.append((0 * q[weight != 0]).nansum() + (d_max if total > 0 else total))
            continue
        q, x, weight = q[weight != 0], pixels[weight != 0], weight[weight != 0]
        d = (x[:, None] - t[None]).square().sum(2).sqrt()  # (S, T)
        mean = (
            _generalized_mean(q, d, weight, d_max, alpha, eps) if form != "power_min" else _power_min(q, d, d_max, eps)
        )
        mass = (weight * q).sum(dtype=torch.float64) + eps
        near = (weight * q * d.amin(1)).sum(dtype=torch.float64) / mass
        found.append(near + (share * mean).sum(dtype=torch.float64) / share.sum(dtype=torch.float64))
    return torch.stack(found).to(torch.float64).reshape(N, C)


def _generalized_mean(q: Tensor, d: Tensor, weight: Tensor, d_max: float, alpha: float, eps: float) -> Tensor:
    """M_t for every point."""
    g = q[:, None] * d + ((1 - q[:, None]) * d_max + eps)
    least = _first_min(g)
    if alpha == -inf:
        return least
    unit = least.detach()  # so that no power overflows
    mean = (weight[:, None] * (g / unit) ** alpha).sum(0) / weight.sum()
    return unit * mean ** (1 / alpha)


def _power_min(q: Tensor, d: Tensor, d_max: float, eps: float) -> Tensor:
    return _first_min((d + eps) / (q[:, None] ** 4 + eps / d_max)).clamp(max=d_max)


def _first_min(g: Tensor) -> Tensor:
    """The minimum over the pixels, and its gradient to the first of those that attain it."""
    where = (g.detach() == g.detach().amin(0)).to(torch.uint8).argmax(0)
    return g.gather(0, where[None])[0]


def forward(
    pair: HardPair,
    with_gradient: bool,
    *,
    alpha: float,
    eps: float,
    form: str,
    points: tuple[Tensor, ...] | None,
) -> tuple[Tensor, Tensor | None]:
    return with_derivative(pair, with_gradient, partial(losses, alpha=alpha, eps=eps, form=form, points=points))
