"""The functions of the original repository of the Lovasz losses (bermanmaxim/LovaszSoftmax)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..ops.lovasz_extension import lovasz_extension
from ..ops.pixel_stats import NEVER
from ._adapter import bare, floating, record

__all__ = ["lovasz_hinge", "lovasz_softmax"]


def _scalar(x: Tensor, input: Tensor) -> Tensor:
    record("lovasz_extension")
    return x.to(torch.float64 if input.dtype == torch.float64 else torch.float32)


def lovasz_hinge(logits: Tensor, labels: Tensor, per_image: bool = True, ignore: int | None = None) -> Tensor:
    """Binary Lovasz hinge of logits and 0/1 labels, ``(B, H, W)`` each; any number of axes."""
    logits, labels = floating(bare(logits)), bare(labels)
    n = len(logits) if per_image else 1
    losses = lovasz_extension(
        logits.reshape(n, 1, -1),
        labels.reshape(n, 1, -1),
        mode="binary",
        per_image=True,
        ignore_index=NEVER if ignore is None else ignore,
    )
    return _scalar(losses.mean() if n else losses.sum(), logits)


def lovasz_softmax(
    probas: Tensor,
    labels: Tensor,
    classes: Literal["present", "all"] | Sequence[int] = "present",
    per_image: bool = False,
    ignore: int | None = None,
) -> Tensor:
    """Lovasz-softmax of probabilities ``(B, C, H, W)`` and labels ``(B, H, W)``; ``(B, H, W)`` probabilities are those
    of class 1."""
    return softmax_of(floating(bare(probas)), bare(labels), classes, per_image, ignore, from_logits=False)


def softmax_of(
    input: Tensor,
    labels: Tensor,
    classes: Literal["present", "all"] | Sequence[int],
    per_image: bool,
    ignore: int | None,
    from_logits: bool,
) -> Tensor:
    if input.ndim == 3 or input.shape[1] == 1:  # the output of a sigmoid
        if len(classes) > 1:
            raise ValueError("Sigmoid output possible only with 1 class. Try: classes=[1]")
        one = input.reshape(len(input), 1, -1)
        input = torch.cat([1 - one, one], 1)
    shape = (len(input), *input.shape[2:])
    labels = labels.reshape(shape)
    found = lovasz_extension(
        input,
        labels,
        mode="multiclass",
        per_image=per_image,
        classes=classes,
        from_logits=from_logits,
        ignore_index=NEVER if ignore is None else ignore,
    )
    if isinstance(classes, str):
        counted = torch.ones_like(found) if classes == "all" else _present(labels, len(found), input.shape[1], ignore)
        means = (found * counted).sum(1) / counted.sum(1).clamp(min=1)
    else:
        means = found[:, list(classes)].mean(1)
    return _scalar(means.mean() if len(means) else means.sum(), input)


def _present(labels: Tensor, rows: int, classes: int, ignore: int | None) -> Tensor:
    """1 for the classes with a pixel in each problem."""
    flat = labels.reshape(rows, -1).long()
    hot = torch.zeros((rows, classes + 1), dtype=torch.float64, device=labels.device)
    if ignore is not None:
        flat = torch.where(flat == ignore, classes, flat)
    return hot.scatter_(1, flat, 1.0)[:, :classes]
