"""Tversky: Dice with a price each for false positives and false negatives."""

from __future__ import annotations

from typing import Literal

from typing_extensions import Unpack

from ..ops.formula import Array, PixelStats, ratio, where
from ._base import RegionOptions, StatsLoss, number, one_of

__all__ = ["FocalTverskyLoss", "TverskyLoss"]


class TverskyLoss(StatsLoss):
    """Tversky loss: ``1 - (TP + s) / (TP + alpha FP + beta FN + s)``.

    Args:
        alpha: price of a false positive.
        beta: price of a false negative. alpha = beta = 0.5 is Dice with twice the smoothing, alpha = beta = 1 is
            Jaccard.

    Source: Salehi et al. 2017 (arXiv 1706.05721); Jadon II-F.
    """

    def __init__(self, *, alpha: float = 0.3, beta: float = 0.7, **common: Unpack[RegionOptions]) -> None:
        super().__init__(**common)
        self.alpha, self.beta = number("alpha", alpha), number("beta", beta)

    def formula(self, s: PixelStats) -> Array:
        sn, sd = self.smooth
        wrong = self.alpha * s.fp + self.beta * s.fn
        return ratio(wrong + (sd - sn), s.tp + wrong + sd)


class FocalTverskyLoss(TverskyLoss):
    """The Tversky loss raised to ``gamma``: below 1 it keeps pushing regions that are nearly right.

    Args:
        gamma: the exponent itself (the paper writes it 1 / gamma with gamma = 4/3).
        power: ``"per_group"`` before the mean, ``"after_mean"`` after it.

    Source: Abraham and Khan 2018 (arXiv 1810.07842); Jadon II-G.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 0.75,
        power: Literal["per_group", "after_mean"] = "per_group",
        **common: Unpack[RegionOptions],
    ) -> None:
        super().__init__(alpha=alpha, beta=beta, **common)
        self.gamma = number("gamma", gamma)
        self.power = one_of("power", power, ("per_group", "after_mean"))

    def formula(self, s: PixelStats) -> Array:
        loss = super().formula(s)
        return bounded_power(loss, self.gamma) if self.power == "per_group" else loss

    def outer(self, x: Array) -> Array:
        return bounded_power(x, self.gamma) if self.power == "after_mean" else x


def bounded_power(x: Array, exponent: float, least: float = 1e-7) -> Array:
    """``x^exponent`` for x >= 0; below ``least`` with its slope there, which for exponents under 1 is infinite at 0."""
    x = x.clamp(min=0.0)
    if exponent >= 1:
        return x**exponent
    slope = exponent * least ** (exponent - 1)
    return where(x >= least, x.clamp(min=least) ** exponent, (x.detach() ** exponent) + slope * (x - x.detach()))
