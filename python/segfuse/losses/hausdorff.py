"""Hausdorff losses: errors weighed by how far they are from the boundaries, or by how deep they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from ..ops import disk_sums, erosion
from ..ops._hard_pair import HardPair
from ..ops.distance_transform_edt import distance_transform_edt
from ..ops.formula import Array, PixelStats
from ..ops.pixel_stats import Geometry, Tensors
from ._base import Options
from ._boundary import HardLoss
from ._distance import (
    DistanceLoss,
    DistanceOptions,
    dtype,
    hard_only,
    hard_option,
    per_class,
    positive,
    predicted_masks,
    target_masks,
)

__all__ = ["HausdorffCVLoss", "HausdorffDTLoss", "HausdorffERLoss"]


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
        if x.distance is None:
            d = hard_only(self._power(target_masks(x, g), x, g), x, g)
        else:
            d = x.distance.to(dtype(x)) ** self.alpha
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


class HausdorffCVLoss(HardLoss):
    """Errors count more, the larger the balls around them that hold more of one region than of the other.

    The mean over pixels of ``(p - y)^2 (w_f p + w_e y)``, where w_f and w_e add ``r^alpha`` times what balls of radius
    r around the pixel hold above one half: of background of the target and of predicted object for w_f (false
    positives), of object of the target and of predicted background for w_e (false negatives). Both are constants for
    the gradient.

    Args:
        alpha: exponent of the radius.
        radii: of the balls, in pixels, whole numbers.
        hard: what counts as predicted: ``"threshold"`` p > 1/2, ``"argmax"`` the most probable class (multiclass).

    Source: Karimi and Salcudean 2019 (arXiv 1904.10030), its section on circular kernels. No public code is known; the
    radii and the form of the threshold are a reading of the paper.
    """

    op = "disk_sums"

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        radii: Sequence[int] = (3, 6, 9, 12, 15, 18),
        hard: str = "threshold",
        **common: Unpack[Options],
    ) -> None:
        super().__init__(**common)
        self.alpha, self.radii = alpha, tuple(radii)
        self.hard = hard_option(hard)
        disk_sums.check(self.radii, alpha)

    def sums(self, pair: HardPair) -> Tensor:
        return disk_sums.disk_sums(pair, radii=tuple(self.radii), alpha=self.alpha, hard=self.hard)


class HausdorffERLoss(HardLoss):
    """How deep the regions of error are: the squared error, eroded again and again.

    The mean over pixels of ``sum_k k^alpha b_k`` with ``b_0 = (p - y)^2`` and ``b_k`` its k-th erosion: an average with
    the face neighbours, less 1/2, not below 0. Pixels far from the region's rim survive longest and count most.

    Args:
        alpha: exponent of the number of the erosion.
        erosions: how many; deeper errors than that many pixels are not told apart.
        norm: what follows an erosion: ``"minmax"`` stretches each (sample, class) to [0, 1], ``"double"`` is 2 b,
            ``"none"`` leaves nothing after the second erosion.

    Source: Karimi and Salcudean 2019 (arXiv 1904.10030), its section on morphological erosion.
    """

    op = "erosion"

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        erosions: int = 10,
        norm: Literal["minmax", "double", "none"] = "minmax",
        **common: Unpack[Options],
    ) -> None:
        super().__init__(**common)
        self.alpha, self.erosions, self.norm = alpha, erosions, norm
        erosion.check(erosions, alpha, norm)

    def sums(self, pair: HardPair) -> Tensor:
        return erosion.erosion(pair, steps=self.erosions, alpha=self.alpha, norm=self.norm)
