"""Unified focal loss."""

from __future__ import annotations

from typing_extensions import Unpack

from ..ops.formula import Array, PixelStats, ratio, where
from ._base import Loss, PixelLoss, PixelOptions, PresetLoss, RegionOptions, StatsLoss, UnsmoothedRegionOptions, number
from .tversky import bounded_power

__all__ = ["UnifiedFocalLoss"]


class UnifiedFocalLoss(PresetLoss):
    """``lam`` times a focal loss plus ``1 - lam`` times a focal Tversky loss, tied together by ``delta`` and ``gamma``.

    Args:
        lam: share of the focal term, in [0, 1].
        delta: price of what is missed of the foreground, in [0, 1]; 1 - delta of the rest.
        gamma: focusing exponent in [0, 1): suppresses the background in the focal term, enhances the foreground in the
            Tversky term.
        asymmetric: focus only where the two classes need it; ``False`` focuses both classes in both terms.
        smooth: as for every region loss, with default 1e-7.

    Class 0 is background; binary mode uses p_0 = 1 - p. Source: Yeung et al. 2021 (arXiv 2102.04525).
    """

    weight_setting = "lam"

    def __init__(
        self,
        *,
        lam: float = 0.5,
        delta: float = 0.6,
        gamma: float = 0.5,
        asymmetric: bool = True,
        smooth: float | tuple[float, float] = 1e-7,
        **common: Unpack[UnsmoothedRegionOptions],
    ) -> None:
        super().__init__(smooth=smooth, **common)
        self.lam, self.delta, self.gamma, self.asymmetric = lam, delta, gamma, asymmetric
        self.rebuild()

    def build(self) -> dict[str, tuple[float, Loss]]:
        share = number("lam", self.lam, 0, 1)
        settings = number("delta", self.delta, 0, 1), number("gamma", self.gamma, 0, 1), bool(self.asymmetric)
        return {
            "focal": (share, _Focal(*settings, **self.pixel_options())),
            "focal_tversky": (1 - share, _FocalTversky(*settings, **self.region_options())),
        }


class _Focal(PixelLoss):
    def __init__(self, delta: float, gamma: float, asymmetric: bool, **common: Unpack[PixelOptions]) -> None:
        super().__init__(**common)
        self.delta, self.gamma, self.asymmetric = delta, gamma, asymmetric

    def pixel(self, s: PixelStats) -> Array:
        one, zero = s.focal(self.gamma)
        front = s.focal(0.0)[0] if self.asymmetric else one
        if not s.multiclass:
            return self.weighted(s, self.delta * front + (1 - self.delta) * zero)
        if self.drops_background(s):
            return self.weighted(s, self.delta * front)
        return self.weighted(s, where(s.class_index == 0, (1 - self.delta) * one, self.delta * front))


class _FocalTversky(StatsLoss):
    def __init__(self, delta: float, gamma: float, asymmetric: bool, **common: Unpack[RegionOptions]) -> None:
        super().__init__(**common)
        self.delta, self.gamma, self.asymmetric = delta, gamma, asymmetric

    def formula(self, s: PixelStats) -> Array:
        def tversky(tp: Array, fp: Array, fn: Array) -> Array:
            sn, sd = self.smooth
            wrong = self.delta * fn + (1 - self.delta) * fp
            return ratio(wrong + (sd - sn), tp + wrong + sd)

        front = tversky(s.tp, s.fp, s.fn)
        focused = bounded_power(front, 1 - self.gamma)
        if not s.multiclass:
            back = tversky(s.tn, s.fn, s.fp)
            return 0.5 * (focused + (back if self.asymmetric else bounded_power(back, 1 - self.gamma)))
        if self.drops_background(s) or not self.asymmetric or self.average == "micro":
            return focused
        return where(s.class_index == 0, front, focused)
