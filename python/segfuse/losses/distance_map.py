"""Cross-entropy weighed by distances: to the boundary, or to the two nearest cells."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..maps import boundary_penalty, connected_components, gap_weight
from ..ops.formula import Array, PixelStats
from ..ops.pixel_stats import Geometry, Tensors
from ._base import PixelLoss, PixelOptions, number, one_of
from ._distance import (
    MappedCrossEntropyLoss,
    Spacing,
    dtype,
    hard_only,
    label_map,
    one_hot,
    positive,
    spacing_option,
    target_masks,
)
from .cross_entropy import CrossEntropyLoss

__all__ = ["DistanceMapCrossEntropyLoss", "UNetWeightedCrossEntropyLoss"]


class DistanceMapCrossEntropyLoss(MappedCrossEntropyLoss):
    """``mean (1 + phi) CE``, with phi falling from the boundary to the inside of every region.

    Args:
        phi: ``"normalized"`` (dmax - d) / (dmax - dmin) of the region, 1 at the boundary and 0 deepest inside;
            ``"inverse"`` dmax - d, in the unit of ``spacing``.
        spacing: size of a pixel, along every spatial axis or one for each. Default: 1.

    d is the distance to the nearest pixel with another label. A region of one thickness has phi 1, an image with one
    label phi 0. ``distance_map=`` takes a phi of your own.
    Source: Caliva et al. 2019 (arXiv 1908.03679); Jadon 2020 (arXiv 2006.14822) II-L.
    """

    def __init__(
        self,
        *,
        phi: Literal["normalized", "inverse"] = "normalized",
        spacing: Spacing = None,
        **common: Unpack[PixelOptions],
    ) -> None:
        super().__init__(**common)
        self.phi = one_of("phi", phi, ("normalized", "inverse"))
        self.spacing = spacing_option(spacing)

    def distances(self, x: Tensors, g: Geometry) -> Tensor:
        if x.distance is not None:
            return x.distance + 1
        labels = label_map(target_masks(x, g), g)
        classes, normalized = max(g.shape[1], 2), self.phi == "normalized"
        phi = boundary_penalty(labels, len(g.spatial), classes, normalized, self.spacing, dtype(x))
        return hard_only((phi.unsqueeze(1) if g.exclusive else phi).add_(1), x, g)


class UNetWeightedCrossEntropyLoss(CrossEntropyLoss):
    """``mean w CE`` with ``w = w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2))``: narrow gaps between cells weigh most.

    Args:
        w0: weight of the gaps.
        sigma: their width, in the unit of ``spacing``.
        only_background: the gap term only where the target is background.
        spacing: size of a pixel, along every spatial axis or one for each. Default: 1.

    d1 and d2 are the distances to the nearest and the second nearest instance: those of ``instances=`` in the call (a
    label map shaped like the target, 0 is background), or the connected components of the target, corners included.
    w_c is ``class_weight`` (and ``beta``), 1 by default. Fewer than two instances: no gap term. ``distance_map=`` takes
    the gap term, as :class:`segfuse.transforms.UNetWeightMap` makes it.
    Source: Ronneberger et al. 2015 (arXiv 1505.04597) eq. 2.
    """

    measures = True

    def __init__(
        self,
        *,
        w0: float = 10.0,
        sigma: float = 5.0,
        only_background: bool = True,
        spacing: Spacing = None,
        **common: Unpack[PixelOptions],
    ) -> None:
        super().__init__(**common)
        self.w0 = number("w0", w0)
        self.sigma = positive("sigma", sigma)
        self.only_background = bool(only_background)
        self.spacing = spacing_option(spacing)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        instances: Tensor | None = None,
        distance_map: Tensor | None = None,
        **call: Any,
    ) -> Any:
        if instances is not None:
            x, g = self.check(input, target, None, None, instances)  # shaped like a distance map
            distance_map = self._gaps(instances, len(g.spatial), dtype(x))
        return super().forward(input, target, distance_map=distance_map, **call)

    def distances(self, x: Tensors, g: Geometry) -> Tensor:
        if x.distance is not None:
            return x.distance
        masks, axes = target_masks(x, g, wait=True), len(g.spatial)  # components wait in any case
        if not g.exclusive:
            return self._gaps(connected_components(masks, axes), axes, dtype(x))
        # Touching objects of different classes are different instances.
        found = connected_components(one_hot(masks, g)[:, 1:], axes).amax(1, keepdim=True)
        return self._gaps(found, axes, dtype(x))

    def _gaps(self, instances: Tensor, axes: int, dtype: torch.dtype) -> Tensor:
        w = gap_weight(instances, axes, self.w0, self.sigma, self.spacing, dtype)
        return w.mul_(instances == 0) if self.only_background else w

    def pixel(self, s: PixelStats) -> Array:
        one, zero = self.entropy(s, mapped=True)
        return super().pixel(s) + (one + zero)

    def normaliser(self, s: PixelStats) -> Array:
        return PixelLoss.normaliser(self, s)
