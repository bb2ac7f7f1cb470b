"""``torch.nn``: cross-entropy of classes and of independent channels. :func:`segfuse.patch` never touches torch."""

from __future__ import annotations

from contextlib import suppress

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.pixel_stats import NEVER
from ._adapter import (
    Call,
    Explained,
    Reading,
    Term,
    bare,
    binary_cross_entropy,
    by_torch_because,
    floating,
    numbers,
    pixel_map,
    record,
    total,
)
from ._adapter import (
    cross_entropy as _entropy,
)

__all__ = ["BCEWithLogitsLoss", "CrossEntropyLoss", "binary_cross_entropy_with_logits", "cross_entropy"]


class CrossEntropyLoss(Explained, nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss``."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class BCEWithLogitsLoss(Explained, nn.BCEWithLogitsLoss):
    """``torch.nn.BCEWithLogitsLoss``."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The two deprecated options win, as in torch."""
    if size_average is not None or reduce is not None:
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return reduction


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``torch.nn.functional.cross_entropy``."""
    reduction = _reduction(size_average, reduce, reduction)
    input, target = bare(input), bare(target)
    if input.ndim == 1:  # one sample
        one = cross_entropy(input[None], target[None], weight, None, ignore_index, None, reduction, label_smoothing)
        return one[0] if reduction == "none" else one
    dense = target.shape == input.shape
    if not dense and target.shape != (len(input), *input.shape[2:]):
        raise ValueError(
            f"Expected target size {[len(input), *input.shape[2:]]} or {list(input.shape)}, got {list(target.shape)}. "
            "Try: target.squeeze(1)"
        )
    if weight is not None and weight.numel() != input.shape[1]:
        raise RuntimeError(
            f"weight tensor should be defined either for all {input.shape[1]} classes or no classes but got "
            f"weight tensor of shape: {list(weight.shape)}"
        )
    if input.shape[1] == 1 or (reduction == "none" and by_torch_because(input, target)):
        record("one class")
        target = target if dense else target.long()
        return F.cross_entropy(input, target, weight, None, ignore_index, None, reduction, label_smoothing)
    reading = Reading("multiclass", ignore_index=NEVER if dense else ignore_index)
    term = Term(_entropy, weight=numbers(weight), smoothing=float(label_smoothing), reduction=reduction, dense=dense)
    call = Call(input, target, reading)
    return pixel_map(call, term) if reduction == "none" else total((1.0, call, term))


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """``torch.nn.functional.binary_cross_entropy_with_logits``."""
    reduction = _reduction(size_average, reduce, reduction)
    input, target = floating(bare(input)), bare(target)
    if target.shape != input.shape:
        raise ValueError(f"Target size ({target.shape}) must be the same as input size ({input.shape})")
    channels = pos_weight is None or _per_channel(pos_weight, input)
    if weight is None and channels and not by_torch_because(input, target):
        call, values = elements(input, target, pos_weight), numbers(pos_weight)
        values = values[0] if isinstance(values, tuple) and len(values) == 1 else values
        term = Term(binary_cross_entropy, pos_weight=values, reduction=reduction)
        if reduction != "none":
            return total((1.0, call, term))
        with suppress(ValueError):  # a target beyond 0 to 1
            return pixel_map(call, term).reshape(input.shape)
    record("weights of elements, or a target beyond 0 to 1")
    target = target if target.dtype.is_floating_point else target.to(input.dtype)
    return F.binary_cross_entropy_with_logits(input, target, weight, None, None, reduction, pos_weight)


def _per_channel(weight: Tensor, input: Tensor) -> bool:
    """One weight, or one along axis 1, that is not learned."""
    if weight.requires_grad:
        return False
    shape = (*[1] * (input.ndim - weight.ndim), *weight.shape)
    along = [i for i, n in enumerate(shape) if n != 1]
    return len(shape) == input.ndim and along in ([], [1])


def elements(input: Tensor, target: Tensor, per_channel: Tensor | None = None) -> Call:
    """Elements that have nothing to do with each other, as pixels of one channel, or of channels."""
    if per_channel is not None and per_channel.numel() > 1:
        return Call(input, target, Reading("multilabel"))
    if input.ndim > 1 and input.shape[1] == 1:
        return Call(input, target, Reading("binary"))
    if input.is_contiguous() or input.ndim < 2:
        return Call(input.reshape(1, 1, -1), target.reshape(1, 1, -1), Reading("binary"))
    return Call(input.unsqueeze(1), target.unsqueeze(1), Reading("binary"))
