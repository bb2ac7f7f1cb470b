"""The definition of local_moments: the windows of one axis after the other, in plain torch.

Along an axis the windows of a pixel's neighbours have means m_k and variances v_k. With weights w that add up to 1 and
d_k = m_k - m_0, the law of total variance gives m = m_0 + sum w d and v = sum w v + sum w d^2 - (sum w d)^2, and alike
for the covariance. Differences to the centre are exact where an image is flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.local_moments import Window
from .._layout import moments_shape


def refuses(input: Tensor, device: str | None = None) -> str | None:
    return None


def _along(rows: tuple[Tensor, ...], axis: int, weights: Sequence[float], valid: bool) -> tuple[Tensor, ...]:
    """Combines ``(mean, var)`` or ``(mean_a, var_a, mean_b, var_b, cov)`` along one axis."""
    r = len(weights) // 2
    length = rows[0].shape[axis] - (2 * r if valid else 0)
    margin = [0, 0] * (rows[0].ndim - 1 - axis) + ([0, 0] if valid else [r, r])
    padded = [F.pad(row, margin) for row in rows]

    def window(row: int, k: int) -> Tensor:
        return padded[row].narrow(axis, k, length)

    means = (0, 2) if len(rows) == 5 else (0,)
    shift = {i: torch.zeros_like(window(0, r)) for i in means}  # sum w d
    spread = {i: torch.zeros_like(window(0, r)) for i in (1, 3, 4)[: 2 * len(means) - 1]}
    for k, w in enumerate(weights):
        d = {i: window(i, k) - window(i, r) for i in means}
        for i in means:
            shift[i] = shift[i] + w * d[i]
            spread[i + 1] = spread[i + 1] + w * (window(i + 1, k) + d[i] * d[i])
        if len(means) == 2:
            spread[4] = spread[4] + w * (window(4, k) + d[0] * d[2])
    found: list[Tensor] = []
    for i in means:
        found += [window(i, r) + shift[i], (spread[i + 1] - shift[i] * shift[i]).clamp(min=0)]
    if len(means) == 2:
        found.append(spread[4] - shift[0] * shift[2])
    return tuple(found)


def forward(a: Tensor, b: Tensor | None, window: Window) -> tuple[Tensor, ...]:
    """``(mean, var)``, or ``(mean_a, var_a, mean_b, var_b, cov)`` with a second image."""
    a = a if a.dtype == torch.float64 else a.float()
    rows: tuple[Tensor, ...] = (a, torch.zeros_like(a))
    if b is not None:
        b = b if b.dtype == torch.float64 else b.float()
        rows = (*rows, b, torch.zeros_like(b), torch.zeros_like(a))
    if a.numel() == 0:
        nothing = a.sum() if b is None else a.sum() + b.sum()
        return tuple(nothing + row.new_zeros(moments_shape(a, window)) for row in rows)
    for axis, weights in reversed(list(enumerate(window.weights))):
        rows = _along(rows, axis + 2, weights, window.valid)
    return rows


def backward(
    a: Tensor,
    b: Tensor | None,
    window: Window,
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
    create_graph: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ``a`` and ``b`` where needed."""
    with torch.enable_grad():
        images: list[Any] = [
            x if create_graph or x is None else x.detach().requires_grad_(need)
            for x, need in zip((a, b), needs, strict=True)
        ]
        rows = forward(images[0], images[1], window)
        used = [(row, grad) for row, grad in zip(rows, grads, strict=True) if grad is not None and row.requires_grad]
        wanted = [x for x, need in zip(images, needs, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                [row for row, _ in used],
                wanted,
                [grad for _, grad in used],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return next(found) if needs[0] else None, next(found) if needs[1] else None
