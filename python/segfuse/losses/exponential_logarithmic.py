"""Exponential-logarithmic loss."""

from __future__ import annotations

from typing_extensions import Unpack

from ..ops.formula import Array, PixelStats, ratio, where
from ._base import Loss, PixelLoss, PixelOptions, PresetLoss, RegionOptions, StatsLoss, number

__all__ = ["ExponentialLogarithmicLoss"]


class ExponentialLogarithmicLoss(PresetLoss):
    """``w_dice mean (-log Dice)^gamma_dice + w_cross mean a_y CE^gamma_cross``.

    Both terms turn steep again near a perfect prediction.

    Args:
        w_dice: factor of the Dice term.
        w_cross: factor of the cross-entropy term.
        gamma_dice: exponent > 0 of ``-log Dice``.
        gamma_cross: exponent > 0 of the pixel's cross-entropy.
        class_weight: a_c of the cross-entropy term, for example sqrt(sum of frequencies / frequency); binary also takes
            the pair (negatives, positives).
        common: options of :class:`DiceLoss`.

    Source: Wong et al. 2018 (arXiv 1809.00076); Jadon II-K.
    """

    weight_setting = "w_dice"

    def __init__(
        self,
        *,
        w_dice: float = 0.8,
        w_cross: float = 0.2,
        gamma_dice: float = 0.3,
        gamma_cross: float = 0.3,
        **common: Unpack[RegionOptions],
    ) -> None:
        super().__init__(**common)
        self.w_dice, self.w_cross, self.gamma_dice, self.gamma_cross = w_dice, w_cross, gamma_dice, gamma_cross
        self.rebuild()

    def build(self) -> dict[str, tuple[float, Loss]]:
        region: RegionOptions = {**self.region_options(), "class_weight": None}
        dice = _LogDice(number("gamma_dice", self.gamma_dice, 1e-6), **region)
        cross_entropy = _PowerCrossEntropy(number("gamma_cross", self.gamma_cross, 1e-6), **self.pixel_options())
        return {
            "dice": (number("w_dice", self.w_dice), dice),
            "cross_entropy": (number("w_cross", self.w_cross), cross_entropy),
        }


class _LogDice(StatsLoss):
    def __init__(self, gamma: float, **common: Unpack[RegionOptions]) -> None:
        super().__init__(**common)
        self.gamma = gamma

    def formula(self, s: PixelStats) -> Array:
        sn, sd = self.smooth
        b = s.pred + s.true + sd
        loss = ratio(b - (2 * s.tp + sn), b).clamp(max=1 - 1e-6)
        positive = loss > 0
        log = -(-where(positive, loss, 0.5)).log1p()  # -log Dice
        return where(positive, log**self.gamma, 0.0)


class _PowerCrossEntropy(PixelLoss):
    def __init__(self, gamma: float, **common: Unpack[PixelOptions]) -> None:
        super().__init__(**common)
        self.gamma = gamma

    def pixel(self, s: PixelStats) -> Array:
        one, zero = s.power(self.gamma)
        if (
            not s.multiclass
            and self.class_weight is not None
            and len(self.class_weight) == 2
            and s.geometry.shape[1] == 1
        ):
            return self.class_weight[1] * one + self.class_weight[0] * zero
        return self.weighted(s, one + zero)
