"""The definition of erosion, written for reading."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops._hard_pair import HardPair
from ._hard_pair import refuses as refuses
from ._hard_pair import with_derivative


def sums(pair: HardPair, *, steps: int, alpha: float, norm: str) -> Tensor:
    """``(N, C)``: sum over pixels of u sum_k k^alpha b_k."""
    b = torch.where(pair.valid, (pair.p[:, pair.first :] - pair.y) ** 2, 0)
    total = torch.zeros(pair.groups, dtype=torch.float64, device=b.device)
    if b.numel() == 0:
        return total + b.sum()
    for k in range(1, steps + 1):
        b = _normalised((_cross_mean(b) - 0.5).clamp(min=0), norm)
        total = total + k**alpha * (pair.u * b).flatten(2).sum(2, dtype=torch.float64)
    return total


def _cross_mean(b: Tensor) -> Tensor:
    """Mean over a pixel and its face neighbours, 0 outside the image."""
    dims = b.ndim - 2
    total = b
    for axis in range(dims):
        beside = F.pad(b.movedim(2 + axis, -1), (1, 1))
        total = total + (beside[..., :-2] + beside[..., 2:]).movedim(-1, 2 + axis)
    return total / (2 * dims + 1)


def _normalised(e: Tensor, norm: str) -> Tensor:
    if norm == "double":
        return 2 * e
    if norm == "none":
        return e
    axes = tuple(range(2, e.ndim))
    low, high = e.amin(axes, keepdim=True), e.amax(axes, keepdim=True)  # ties share the derivative
    flat = high == low
    return torch.where(flat, e, (e - low) / torch.where(flat, 1, high - low))


def forward(
    pair: HardPair, with_gradient: bool, *, steps: int, alpha: float, norm: str
) -> tuple[Tensor, Tensor | None]:
    return with_derivative(pair, with_gradient, partial(sums, steps=steps, alpha=alpha, norm=norm))
