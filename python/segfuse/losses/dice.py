"""Dice and its relatives: twice the overlap over the sum of the sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from ..ops.formula import Array, PixelStats, mean, ratio, where
from ..ops.pixel_stats import Geometry
from ._base import (
    RegionOptions,
    StatsLoss,
    UnsmoothedRegionOptions,
    UnweightedRegionOptions,
    number,
    one_of,
)

__all__ = ["DiceLoss", "GeneralizedDiceLoss", "LogCoshDiceLoss", "SelfAdjustingDiceLoss"]


class DiceLoss(StatsLoss):
    """Dice loss: ``1 - (2 sum p y + s) / (sum p + sum y + s)``.

    Args:
        squared: sums of squares in the denominator (V-Net).
        log_loss: ``-log`` of the coefficient instead of 1 minus it.

    Source: Milletari et al. 2016 (arXiv 1606.04797); Drozdzal et al. 2016 (arXiv 1608.04117); Jadon II-E.
    """

    def __init__(self, *, squared: bool = False, log_loss: bool = False, **common: Unpack[RegionOptions]) -> None:
        super().__init__(**common)
        self.squared, self.log_loss = bool(squared), bool(log_loss)

    def formula(self, s: PixelStats) -> Array:
        sn, sd = self.smooth
        sizes = s.pred2 + s.true2 if self.squared else s.pred + s.true
        a, b = 2 * s.tp + sn, sizes + sd
        return where(b == 0, 0.0, -ratio(a, b).clamp(min=1e-7).log()) if self.log_loss else ratio(b - a, b)


class LogCoshDiceLoss(DiceLoss):
    """``log cosh`` of the Dice loss: smoother where Dice is small.

    Args:
        reduce_first: ``log cosh`` of the mean instead of the mean of ``log cosh``.

    Source: Jadon II-O.
    """

    def __init__(self, *, squared: bool = False, reduce_first: bool = False, **common: Unpack[RegionOptions]) -> None:
        super().__init__(squared=squared, **common)
        self.reduce_first = bool(reduce_first)

    def formula(self, s: PixelStats) -> Array:
        dice = super().formula(s)
        return dice if self.reduce_first else _log_cosh(dice)

    def outer(self, x: Array) -> Array:
        return _log_cosh(x) if self.reduce_first else x


def _log_cosh(x: Array) -> Array:
    return (2 * (x * 0.5).sinh().square()).log1p()  # exact for small x; a Dice loss is never large


class GeneralizedDiceLoss(StatsLoss):
    """Dice over all classes of a sample at once, each weighted against its size.

    Args:
        weight: ``"square"`` 1 / size^2, ``"simple"`` 1 / size, ``"uniform"`` 1. An absent class gets the largest weight
            of the sample.
        smooth: as for every region loss, with default 1e-5.

    Source: Sudre et al. 2017 (arXiv 1707.03237).
    """

    def __init__(
        self,
        *,
        weight: Literal["square", "simple", "uniform"] = "square",
        smooth: float | tuple[float, float] = 1e-5,
        **common: Unpack[UnsmoothedRegionOptions],
    ) -> None:
        super().__init__(smooth=smooth, **common)
        self.weight = one_of("weight", weight, ("square", "simple", "uniform"))

    def value(self, s: PixelStats) -> Array:
        v = self.weights(s)
        s = self.groups(s)
        sn, sd = self.smooth
        size = where(s.true > 0, s.true, 1.0)
        w = {"square": 1 / (size * size), "simple": 1 / size, "uniform": size / size}[self.weight]
        present = where(s.true > 0, w, 0.0)
        w = where(s.true > 0, w, present.amax(1, keepdim=True)).detach()
        w = w if v is None else v * w
        a = (2 * w * s.tp).sum(1, keepdim=True) + sn
        b = (w * (s.pred + s.true)).sum(1, keepdim=True) + sd
        loss = where(s.n.sum(1, keepdim=True) > 0, ratio(b - a, b), 0.0)
        if self.reduction == "none":
            return loss
        return loss.sum() if self.reduction == "sum" else mean(loss)


class SelfAdjustingDiceLoss(StatsLoss):
    """Dice on ``q = (1 - p)^alpha p``, which fades on easy pixels.

    Args:
        form: ``"pixel"`` one Dice per pixel, ``1 - (2 q y + s) / (q + y + s)``, averaged over valid pixels and classes
            (the paper); ``"set"`` the sums of :class:`DiceLoss` over q.
        alpha: exponent >= 0 of the fading.
        true_class_only: pixel form, multiclass: look at the target class of each pixel alone.

    For y = 1 the pixel form falls only until p = 1 / (1 + alpha) and has the same value at p = 0 and p = 1: alone it
    does not drive positives to 1. Source: Li et al. 2020 (arXiv 1911.02855).
    """

    def __init__(
        self,
        *,
        form: Literal["pixel", "set"] = "pixel",
        alpha: float = 1.0,
        true_class_only: bool = False,
        class_weight: Sequence[float] | Tensor | None = None,
        **common: Unpack[UnweightedRegionOptions],
    ) -> None:
        super().__init__(class_weight=class_weight, **common)
        self.form = one_of("form", form, ("pixel", "set"))
        self.alpha = number("alpha", alpha)
        self.true_class_only = bool(true_class_only)
        if self.form == "pixel" and self.smooth[0] != self.smooth[1]:
            raise ValueError(
                f"the pixel form has one smoothing; got smooth={self.smooth}. Try: smooth={self.smooth[1]:g}"
            )

    def formula(self, s: PixelStats) -> Array:
        sn, sd = self.smooth
        overlap, rest = s.term("dsc", self.alpha)
        a, b = 2 * overlap + sn, overlap + rest + s.true + sd
        return ratio(b - a, b)

    def value(self, s: PixelStats) -> Array:
        if self.form == "set":
            return super().value(s)
        v = self.weights(s)
        s = self.foreground(s)
        one, zero = s.term("dsc_pixel", self.alpha, self.smooth[0])
        only = self.true_class_only and s.multiclass
        loss = one if only else one + zero
        total = (loss if v is None else v * loss).sum()
        if self.reduction != "mean":
            return total
        return ratio(total, s.true_count.sum() if only else s.count.sum())

    @property
    def by_pixel(self) -> bool:
        return self.form != "set" and self.reduction == "none"

    def unreduced_shape(self, g: Geometry) -> tuple[int, ...]:
        return g.map_shape if self.by_pixel else super().unreduced_shape(g)
