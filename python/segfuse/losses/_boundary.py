"""What losses on distances between a prediction and a hard target have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypedDict

from ..ops._hard_pair import HardPair, hard_pair
from ..ops.pixel_stats import Mode
from ._base import Loss, Reduction, snake


class HardOptions(TypedDict, total=False):
    """Options of losses that need a hard target."""

    mode: Mode
    from_logits: bool
    reduction: Reduction
    ignore_index: int
    class_weight: Sequence[float] | Tensor | None
    include_background: bool | None


class HardLoss(Loss):
    """A mean over pixels that look at their neighbours; the target is 0 or 1, never soft.

    Args:
        include_background: ``None`` leaves out class 0 in multiclass mode, and there alone.
        reduction: ``"mean"`` over the valid pixels of all classes, ``"sum"`` over them, ``"none"``: the mean over the
            valid pixels of every (sample, class).

    One to three spatial axes. Ignored pixels are background in target and prediction, and their neighbours see them so.
    """

    fusable = False
    op: str  # whose sums it takes

    def __init__(
        self,
        *,
        mode: Mode = "auto",
        from_logits: bool = True,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        class_weight: Sequence[float] | Tensor | None = None,
        include_background: bool | None = None,
    ) -> None:
        super().__init__(
            mode=mode,
            from_logits=from_logits,
            reduction=reduction,
            ignore_index=ignore_index,
            class_weight=class_weight,
        )
        self.include_background: bool | None = include_background  # type: ignore[assignment]

    def sums(self, pair: HardPair) -> Tensor:
        """The loss of every group, ``(N, C)``, summed over its pixels."""
        raise NotImplementedError

    def reduce(self, sums: Tensor, pair: HardPair) -> Tensor:
        counts = pair.counts().to(sums.device)
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
        C = pair.p.shape[1]
        if self.class_weight is None:
            return like.new_ones((1, C - pair.first))
        if len(self.class_weight) != C:
            raise ValueError(
                f"class_weight must have one weight for each of the {C} classes; got {len(self.class_weight)}. "
                "Try: class_weight of length C, whatever include_background says"
            )
        return like.new_tensor(self.class_weight)[None, pair.first :]

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        weight_map: Tensor | None = None,
        mask: Tensor | None = None,
        return_terms: bool = False,
    ) -> Any:
        return self.evaluate_pair(input, target, weight_map, mask, return_terms)

    def evaluate_pair(
        self,
        input: Tensor,
        target: Tensor,
        weight_map: Tensor | None,
        mask: Tensor | None,
        return_terms: bool,
        **more: Any,
    ) -> Any:
        x, g = self.check(input, target, weight_map, mask)
        background = self.include_background
        background = g.mode != "multiclass" if background is None else background
        pair = hard_pair(x, g, include_background=background)
        value = self.reduce(self.sums(pair, **more), pair).to(pair.p.dtype)
        return (value, {snake(type(self).__name__): value.detach()}) if return_terms else value
