"""The definition of cmssl, in plain torch on local_moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...ops.cmssl import Cmssl
from ...ops.pixel_stats import Geometry, Tensors
from . import local_moments
from .local_moments import refuses as refuses
from .pixel_stats import _entropy, _where_positive
from .ssim import centred, images

_DIMS = {"batch": (0, 1, 2), "sample": (1, 2), "class": (0, 2)}


def terms(
    x: Tensors, g: Geometry, o: Cmssl, moments: Callable[..., Any] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``u f e l`` and f of every element, each ``(N, C, S)``, and the number of targets or weights out of range."""
    s, p, y = images(x, g)
    mp, vp, my, vy, _ = (moments or local_moments.forward)(p, y, o.window)

    def relative(a: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return (centred(a, o.window) - mean + o.c4) / ((var + o.variance_eps).sqrt() + o.c4)

    e = (relative(y, my, vy) - relative(p, mp, vp)).abs()
    if o.window.valid:  # a pixel without a window has no error
        full = torch.zeros(g.shape, dtype=e.dtype, device=e.device)
        centred(full, o.window).copy_(e)
        e = full
    used = torch.arange(g.shape[1], device=p.device).reshape(1, -1, 1) >= o.first_class
    m = s.m & used
    e = torch.where(m, e.reshape(m.shape), 0)
    if o.detach:
        e = e.detach()
    if o.scope == "fixed" or not e.numel():
        cut: Tensor | float = o.cut
    else:
        cut = o.cut * e.detach().amax(_DIMS[o.scope], keepdim=True)
    f = m & ~(e.detach() <= cut)  # NaN is selected, and seen in the sum
    loss = _where_positive(s.y, s.lp) if g.exclusive else _entropy(s, g)
    infinite = loss == torch.inf  # such a loss says nothing about e
    product = torch.where(infinite, e.detach() * loss, e * torch.where(infinite, 0, loss))
    return torch.where(f & (s.u != 0), s.u * product, 0), f, s.broken


def sums(x: Tensors, g: Geometry, o: Cmssl, moments: Callable[..., Any] | None = None) -> tuple[Tensor, Tensor]:
    """Sums ``(2, N, C)``, differentiable, and the number of targets or weights out of range."""
    value, f, broken = terms(x, g, o, moments)
    return torch.stack([value.sum(-1, dtype=torch.float64), f.sum(-1, dtype=torch.float64)]), broken
