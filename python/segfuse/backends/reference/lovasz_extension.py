"""The definition of lovasz_extension, and its derivative with the order of the errors held fixed.

Both are plain torch, run on any device; the derivative can be differentiated again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.lovasz_extension import Problems
from ...ops.pixel_stats import Geometry, Tensors
from .pixel_stats import CLAMP, Pixels, pixels
from .pixel_stats import refuses as refuses


def _rows(x: Tensor, how: Problems) -> Tensor:
    """``(N, C, S)`` as one row for each problem, ``(P, C, pixels)``."""
    return x if how.per_image else x.transpose(0, 1).flatten(1).unsqueeze(0)


def _weights(y: Tensor, valid: Tensor) -> Tensor:
    """J_k - J_(k-1) of pixels in order of descending error, in closed form: differences of J lose their digits."""
    n = valid.to(torch.float64)
    y = y.to(torch.float64) * n
    G = y.sum(-1, keepdim=True)
    F, B = y.cumsum(-1) - y, (n - y).cumsum(-1) - (n - y)  # positives and negatives before
    U = G + B + 1
    negative = torch.where(U > 1, (G - F) / (U * (U - 1)).clamp(min=1), 1)
    return torch.where(y > 0, 1 / (G + B).clamp(min=1), negative) * n


def _score(s: Pixels, x: Tensors, g: Geometry) -> Tensor:
    if g.activation == "identity":
        return s.lq - s.lp
    z = x.input.reshape(s.p.shape).to(s.p.dtype)
    return torch.where(s.m, z, 0)


def invalid(s: Pixels) -> int:
    """The number of targets that are neither 0, 1, a class number nor ignored."""
    return s.invalid + int((s.y != s.y.round()).sum())


def forward(x: Tensors, g: Geometry, how: Problems) -> tuple[Tensor, Tensor, Tensor, int]:
    """Losses and pixels of every class ``(P, C)``, slopes ``(N, C, S)`` and the number of targets out of range."""
    with torch.no_grad():
        s = pixels(x, g)
        error = 1 - _score(s, x, g) * (2 * s.y - 1) if how.hinge else (s.y - s.p).abs()
        error, y, valid = (_rows(t, how) for t in (error, s.y, s.m))
        order = torch.sort(error.masked_fill(~valid, -torch.inf), dim=-1, descending=True, stable=True).indices
        counted = valid & ~(error <= 0) if how.hinge else valid
        positives = y.sum(-1, dtype=torch.float64)
        weight = torch.zeros_like(error, dtype=torch.float64)
        weight.scatter_(-1, order, _weights(y.gather(-1, order), valid.gather(-1, order)))
        kept = torch.tensor(how.wanted, device=y.device)[None, :] & ((positives > 0) | (not how.present))
        weight = torch.where(counted & kept[..., None], weight, 0)
        value = torch.where(weight > 0, error.to(torch.float64) * weight, 0).sum(-1)
        slope = torch.where(y > 0, -weight, weight).to(s.p.dtype)
        slope = torch.where(counted & kept[..., None] & error.isnan(), error, slope)
        N, C, S = s.p.shape
        slope = slope if how.per_image else slope.reshape(C, N, S).transpose(0, 1).contiguous()
    return value, positives, slope, invalid(s)


def backward(x: Tensors, g: Geometry, how: Problems, slope: Tensor, coefficient: Tensor) -> Tensor:
    """d(sum(coefficient * losses)) / d(input)."""
    s = pixels(x, g)
    p, q = s.p, s.q
    slope = slope.reshape(p.shape)
    dz = torch.where(slope == 0, 0, coefficient[..., None].to(p.dtype) * slope)
    if how.hinge and g.activation == "identity":
        by_p, by_q = (torch.where(v >= CLAMP, 1 / torch.where(v >= CLAMP, v, 1), 0 * v) for v in (p, q))
        dz = torch.where(slope == 0, 0, dz * (by_p + by_q))
    elif g.activation == "softmax":
        dz = torch.where((slope == 0).all(1, keepdim=True), 0, p * (dz - (dz * p).sum(1, keepdim=True)))
    return dz.reshape(x.input.shape).to(x.input.dtype)
