"""Jaccard: intersection over union."""

from __future__ import annotations

from typing_extensions import Unpack

from ..ops.formula import Array, PixelStats, ratio
from ._base import RegionOptions, StatsLoss

__all__ = ["JaccardLoss"]


class JaccardLoss(StatsLoss):
    """Jaccard (IoU) loss: ``1 - (sum p y + s) / (sum p + sum y - sum p y + s)``.

    Args:
        squared: sums of squares in place of the sizes.

    Source: Rahman and Wang 2016, doi:10.1007/978-3-319-50835-1_22.
    """

    def __init__(self, *, squared: bool = False, **common: Unpack[RegionOptions]) -> None:
        super().__init__(**common)
        self.squared = bool(squared)

    def formula(self, s: PixelStats) -> Array:
        sn, sd = self.smooth
        sizes = s.pred2 + s.true2 if self.squared else s.pred + s.true
        a, b = s.tp + sn, sizes - s.tp + sd
        return ratio(b - a, b)
