"""``torchvision.ops``: the focal loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..ops.formula import Array, PixelStats
from ._adapter import SoftTarget, Term, bare, by_torch_because, floating, pixel_map, record, total
from .torch import elements

__all__ = ["sigmoid_focal_loss"]


def focal(s: PixelStats, gamma: float, alpha: float | None, reduction: str) -> Array:
    """``-(1 - p_t)^gamma log p_t``, alpha on positives and 1 - alpha on negatives."""
    one, zero = s.term("focal", gamma)
    loss = (one + zero if alpha is None else alpha * one + (1 - alpha) * zero).sum()
    return loss / (s.pixels * s.samples * s.geometry.shape[1]) if reduction == "mean" else loss


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """``torchvision.ops.sigmoid_focal_loss``: of every element, unless reduced; ``alpha=-1`` weighs nothing."""
    alpha = -1 if alpha is None else alpha
    if not 0 <= alpha <= 1 and alpha != -1:
        raise ValueError(f"Invalid alpha value: {alpha}. alpha must be in the range [0,1] or -1 for ignore.")
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(
            f"Invalid Value for arg 'reduction': '{reduction}'. Supported reduction modes: 'none', 'mean', 'sum'"
        )
    inputs, targets = floating(bare(inputs)), bare(targets)
    if targets.shape != inputs.shape:
        raise ValueError(f"Target size ({targets.shape}) must be the same as input size ({inputs.shape})")
    share = None if alpha == -1 else float(alpha)
    call = elements(inputs, targets)
    term = Term(focal, hard_alone=True, gamma=float(gamma), alpha=share, reduction=reduction)
    try:
        if reduction != "none":
            return total((1.0, call, term))
        if not by_torch_because(inputs, targets):
            return pixel_map(call, term).reshape(inputs.shape)
    except (SoftTarget, ValueError):
        pass
    record("a soft target")
    targets = targets.to(inputs.dtype)
    entropy = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p = inputs.sigmoid()
    loss = entropy * (1 - (p * targets + (1 - p) * (1 - targets))) ** gamma
    if share is not None:
        loss = (share * targets + (1 - share) * (1 - targets)) * loss
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss
