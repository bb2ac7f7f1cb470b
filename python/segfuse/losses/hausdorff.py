"""Hausdorff losses: squared errors weighed by how far they are from the boundaries."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from ..ops.distance_transform_edt import distance_transform_edt
from ..ops.formula import Array, PixelStats
from ..ops.pixel_stats import Geometry, Tensors
from ._distance import (
    DistanceLoss,
    DistanceOptions,
    dtype,
    hard_option,
    per_class,
    positive,
    predicted_masks,
    target_masks,
)

__all__ = ["HausdorffDTLoss"]


class HausdorffDTLoss(DistanceLoss):
    """``mean (p - y)^2 (d(q)^alpha + d(y)^alpha)`` with ``d`` the distance to the boundary of prediction and target.

    Args:
        alpha: power of the distances; the paper finds 1 to 3 good.
        one_sided: only ``d(y)``: no transform of the prediction, and the target's map can be computed in advance.
        log: ``log(1 + L)`` of the mean or sum.
        hard: prediction q: ``"threshold"`` p > 0.5, or ``"argmax"`` the most probable class.

    ``d`` is exact and two-sided (inside and outside), and 0 for a mask that is empty or full: combine it with a region
    loss. ``distance_map=`` takes d(y), as :class:`segfuse.transforms.DistanceMap` makes it.
    Source: Karimi and Salcudean 2019 (arXiv 1904.10030) eq. 8; ``log`` as MONAI's ``LogHausdorffDTLoss``.
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        one_sided: bool = False,
        log: bool = False,
        hard: str = "threshold",
        **common: Unpack[DistanceOptions],
    ) -> None:
        super().__init__(**common)
        self.alpha = positive("alpha", alpha)
        self.one_sided = bool(one_sided)
        self.log = bool(log)
        self.hard = hard_option(hard)

    def distances(self, x: Tensors, g: Geometry) -> Tensor:
        d = self._power(target_masks(x, g), x, g) if x.distance is None else x.distance.to(dtype(x)) ** self.alpha
        if self.one_sided:
            return d
        return self._power(predicted_masks(x, g, self.hard), x, g).add_(per_class(d, g))

    def _power(self, masks: Tensor, x: Tensors, g: Geometry) -> Tensor:
        d = self.field(distance_transform_edt, masks, x, g, mode="two_sided", squared=self.alpha == 2)
        return d if self.alpha in (1, 2) else d.pow_(self.alpha)

    def total(self, s: PixelStats) -> Array:
        return s.distance_sq

    def value(self, s: PixelStats) -> Array:
        return super().value(s).log1p() if self.log else super().value(s)
