"""Boundary loss: the prediction weighed by the signed distance to the target's boundary."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from ..maps import signed_distance
from ..ops.formula import Array, PixelStats
from ..ops.pixel_stats import Geometry, Tensors
from ._base import number
from ._distance import DistanceLoss, DistanceOptions, hard_only, target_masks

__all__ = ["BoundaryLoss"]


class BoundaryLoss(DistanceLoss):
    """``mean phi p`` with ``phi`` the distance to the target outside of it, minus (distance - delta) inside.

    Args:
        delta: what the distance inside is short of: 1 gives the object's rim 0; 0 is symmetric. In the unit of
            ``spacing``.

    Negative for good predictions of thick objects, and near 0 for an empty one: a companion, as in
    ``DiceLoss() + 0.1 * BoundaryLoss()``, which is one pass. ``phi`` is 0 where the target is empty or full.
    ``distance_map=`` takes phi, as :class:`segfuse.transforms.SignedDistanceMap` makes it.
    Source: Kervadec et al. 2019 (arXiv 1812.07032).
    """

    def __init__(self, *, delta: float = 1.0, **common: Unpack[DistanceOptions]) -> None:
        super().__init__(**common)
        self.delta = number("delta", delta)

    def distances(self, x: Tensors, g: Geometry) -> Tensor:
        if x.distance is not None:
            return x.distance
        return hard_only(self.field(signed_distance, target_masks(x, g), x, g, delta=self.delta), x, g)

    def total(self, s: PixelStats) -> Array:
        return s.distance_pred
