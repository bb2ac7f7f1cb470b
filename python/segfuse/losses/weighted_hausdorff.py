"""The weighted Hausdorff distance, for locating objects by points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..ops import pairwise_hausdorff
from ..ops._hard_pair import HardPair
from ._base import Options
from ._boundary import HardLoss

__all__ = ["WeightedHausdorffLoss"]


class WeightedHausdorffLoss(HardLoss):
    """The weighted Hausdorff distance between a map of probabilities and points, in pixels.

    ``sum_x p_x min_t d(x, t) / (sum_x p_x + eps) + mean_t M_t``: probability far from every point costs, and so does a
    point without probability near it. ``M_t`` is the generalized mean over the pixels x of
    ``p_x d(x, t) + (1 - p_x) d_max + eps``, with d_max the diagonal of the image.

    Args:
        alpha: exponent of the mean, below 0; ``-inf`` is the minimum (the authors' class has -9).
        eps: keeps quotients finite.
        form: ``"generalized_mean"``, or ``"power_min"``: ``M_t`` is the minimum of ``(d + eps) / (p^4 + eps / d_max)``,
            at most d_max, as in the first version of the paper; it has no alpha.
        reduction: ``"mean"`` over images (and classes), ``"sum"`` or ``"none"``.

    The points are the pixels of a 0/1 target, or, for one channel, a list of coordinates ``(number, axes)`` for every
    image in place of the target: ``loss(logits, [t0, t1])``. An image without points has the value d_max and no
    gradient. A weight map weighs pixels and points. The time is proportional to pixels times points.

    Source: Ribera et al. 2019 (arXiv 1806.07564). Written from the paper's formulas alone. Note before commercial use:
    the authors' own code is licensed CC BY-NC-SA 4.0, and they state that it is covered by US patents.
    """

    op = "pairwise_hausdorff"

    def __init__(
        self,
        *,
        alpha: float = -1.0,
        eps: float = 1e-6,
        form: Literal["generalized_mean", "power_min"] = "generalized_mean",
        **common: Unpack[Options],
    ) -> None:
        super().__init__(**common)
        self.alpha, self.eps, self.form = alpha, eps, form
        pairwise_hausdorff.check(alpha, eps, form)

    def sums(self, pair: HardPair, points: Sequence[Tensor] | None = None) -> Tensor:
        return pairwise_hausdorff.pairwise_hausdorff(
            pair, alpha=self.alpha, eps=self.eps, form=self.form, points=points
        )

    def reduce(self, sums: Tensor, pair: HardPair) -> Tensor:
        v = self.class_weights(pair, sums)
        if self.reduction == "none":
            return v * sums
        total = (v * sums).sum()
        return total if self.reduction == "sum" else total / (max(sums.shape[0], 1) * v.sum())

    def forward(
        self, input: Tensor, target: Tensor | Sequence[Tensor], *, return_terms: bool = False, **call: Any
    ) -> Any:
        points = target if isinstance(target, list | tuple) else None
        if points is not None and (self.mode == "multiclass" or (self.mode == "auto" and input.shape[1] > 1)):
            raise ValueError(
                f"points belong to one channel; got input {tuple(input.shape)}. "
                "Try: mode='multilabel' with points for every channel of every image, or a target of class numbers"
            )
        mask: Any = target if points is None else torch.zeros_like(input, dtype=torch.uint8)
        return self.run(input, mask, return_terms=return_terms, points=points, **call)
