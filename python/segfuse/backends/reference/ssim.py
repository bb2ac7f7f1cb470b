"""The definition of ssim, in plain torch on local_moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...ops.local_moments import Window
from ...ops.pixel_stats import Geometry, Tensors
from ...ops.ssim import Ssim
from . import local_moments
from .local_moments import refuses as refuses
from .pixel_stats import pixels


def centred(x: Tensor, window: Window) -> Tensor:
    """The pixels that are the centre of a window."""
    for axis, (weights, count) in enumerate(zip(window.weights, window.centres(x.shape[2:]), strict=True)):
        x = x.narrow(axis + 2, len(weights) // 2 * window.valid, max(0, count))
    return x


def images(x: Tensors, g: Geometry) -> tuple[Any, Tensor, Tensor]:
    """The pixels, and p and y as images: 0 where ignored."""
    s = pixels(x, g)
    return s, torch.where(s.m, s.p, 0).reshape(g.shape), s.y.reshape(g.shape)


def sums(x: Tensors, g: Geometry, o: Ssim, moments: Callable[..., Any] | None = None) -> tuple[Tensor, Tensor]:
    """Sums ``(2, N, C)``, differentiable, and the number of targets or weights out of range."""
    s, p, y = images(x, g)
    mp, vp, my, vy, cov = (moments or local_moments.forward)(p, y, o.window)
    similar = (2 * cov + o.c2) / (vp + vy + o.c2)
    if not o.contrast:
        similar = similar * (2 * mp * my + o.c1) / (mp * mp + my * my + o.c1)
    u = centred(s.u.reshape(g.shape), o.window)
    used = (torch.arange(g.shape[1], device=p.device) >= o.first_class).to(torch.float64)
    rows = [torch.where(u == 0, 0, u * similar), u]
    return torch.stack([used * row.flatten(2).sum(-1, dtype=torch.float64) for row in rows]), s.broken
