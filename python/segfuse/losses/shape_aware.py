"""Shape-aware loss: cross-entropy that costs more where prediction and target differ, by how far their contours are."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..maps import contour
from ..ops.distance_transform_edt import distance_transform_edt
from ..ops.pixel_stats import Geometry, Tensors
from ._base import PixelOptions, one_of
from ._distance import (
    MappedCrossEntropyLoss,
    Spacing,
    dtype,
    hard_only,
    hard_option,
    one_hot,
    predicted_masks,
    spacing_option,
    target_masks,
)

__all__ = ["ShapeAwareLoss"]


class ShapeAwareLoss(MappedCrossEntropyLoss):
    """``mean (1 + E) CE``; E is not 0 where the hard prediction differs from the target.

    Args:
        form: ``"curve"`` E is the mean distance of the predicted contour to the target's, one number per (sample,
            class); ``"pixel"`` the distance of the pixel to the target's contour.
        hard: prediction: ``"threshold"`` p > 0.5, or ``"argmax"`` the most probable class.
        spacing: size of a pixel, along every spatial axis or one for each. Default: 1.

    A contour is made of object pixels with a face neighbour in the background; the image border is none. Without a
    predicted or without a target contour E = 0. Over classes E adds up.
    Source: Al Arif et al. 2017 (MSKI); Jadon 2020 (arXiv 2006.14822) II-I.
    """

    def __init__(
        self,
        *,
        form: Literal["curve", "pixel"] = "curve",
        hard: str = "threshold",
        spacing: Spacing = None,
        **common: Unpack[PixelOptions],
    ) -> None:
        super().__init__(**common)
        self.form = one_of("form", form, ("curve", "pixel"))
        self.hard = hard_option(hard)
        self.spacing = spacing_option(spacing)

    def distances(self, x: Tensors, g: Geometry) -> Tensor:
        if x.distance is not None:
            return x.distance + 1
        target, prediction = (one_hot(m, g) for m in (target_masks(x, g), predicted_masks(x, g, self.hard)))
        if self.leaves_out_background(g):
            target[:, 0] = prediction[:, 0] = False
        axes = len(g.spatial)
        theirs, ours = contour(target, axes), contour(prediction, axes)
        # 0 everywhere without a contour of the target
        d = distance_transform_edt(~theirs, spatial_dims=axes, spacing=self.spacing, dtype=dtype(x))
        space = tuple(range(2, 2 + axes))
        length = ours.sum(space, keepdim=True)
        if self.form == "curve":
            d = torch.where(ours, d, 0).sum(space, keepdim=True, dtype=torch.float64).to(d.dtype) / length.clamp(min=1)
        e = torch.where((target != prediction) & (length > 0), d, 0)
        return hard_only((e.sum(1, keepdim=True) if g.exclusive else e).add_(1), x, g)
