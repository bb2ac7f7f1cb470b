"""What losses on distances between a prediction and a hard target have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..backends import pick
from ..ops._hard_pair import HardPair, hard_pair
from ..ops.formula import one_per_class
from ..ops.pixel_stats import Geometry, Tensors
from ._base import Loss, UnbackedOptions, beside


class HardLoss(Loss):
    """A mean over pixels that look at their neighbours; the target is 0 or 1, never soft.

    Args:
        include_background: ``None`` leaves out class 0 in multiclass mode, and there alone.
        reduction: ``"mean"`` over the valid pixels of all classes, ``"sum"`` over them, ``"none"``: the mean over the
            valid pixels of every (sample, class).

    One to three spatial axes. Ignored pixels are background in target and prediction, and their neighbours see them so.
    """

    own_pass = True
    op: str  # whose sums it takes

    def __init__(self, *, include_background: bool | None = None, **common: Unpack[UnbackedOptions]) -> None:
        super().__init__(include_background=include_background, **common)

    def sums(self, pair: HardPair) -> Tensor:
        """The loss of every group, ``(N, C)``, summed over its pixels."""
        raise NotImplementedError

    def reduce(self, sums: Tensor, pair: HardPair) -> Tensor:
        counts = pair.counts()
        v = self.class_weights(pair, sums)
        if self.reduction == "none":
            return v * sums / counts.clamp(min=1)
        total = (v * sums).sum()
        if self.reduction == "sum":
            return total
        divisor = (v * counts).sum()
        return total / torch.where(divisor > 0, divisor, 1)

    def class_weights(self, pair: HardPair, like: Tensor) -> Tensor:
        """``(1, C)`` of the classes that count."""
        classes = pair.p.shape[1]
        v = (1.0,) * classes if self.class_weight is None else tuple(one_per_class(self.class_weight, classes))
        return beside(v, like.device)[None, pair.first :]

    def explanation(self, input: Tensor, target: Tensor) -> str:
        x, g = self.check(input, target, None, None)
        computed = x.input if x.input.dtype == torch.float64 else x.input.new_empty(0, dtype=torch.float32)
        backend = pick(self.op, computed).__name__.split(".")[-2]
        how = f"mode {g.mode}, {g.activation} by torch"
        return f"{how}; {self.op} on {backend}: a forward pass that also writes the gradient"

    def compute(self, x: Tensors, g: Geometry, **more: Any) -> Tensor:
        pair = hard_pair(x, g, include_background=not self.leaves_out_background(g))
        return self.reduce(self.sums(pair, **more), pair).to(pair.p.dtype)
