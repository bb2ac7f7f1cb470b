"""Weighted sums of a distribution and a region loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from ..ops.formula import Array, PixelStats
from ._base import Loss, PresetLoss, RegionOptions, number
from .cross_entropy import BalancedCrossEntropyLoss, CrossEntropyLoss
from .dice import DiceLoss
from .focal import FocalLoss

__all__ = ["ComboLoss", "DiceCELoss", "DiceFocalLoss"]


class ComboLoss(PresetLoss):
    """``alpha`` times cross-entropy weighted by ``beta`` plus ``1 - alpha`` times Dice.

    Args:
        alpha: share of the cross-entropy, in [0, 1].
        beta: weight of the positives (multiclass: of the classes above 0), 1 - beta of the rest; above 0.5 misses cost
            more.
        offset: ``False`` subtracts the Dice coefficient instead of adding the Dice loss (the original's value; same
            gradient).
        common: options of :class:`DiceLoss`.

    Source: Taghanaki et al. 2018 (arXiv 1805.02798); Jadon II-J. Both print a sign or a parenthesis wrong.
    """

    weight_setting = "alpha"

    def __init__(
        self, *, alpha: float = 0.5, beta: float = 0.5, offset: bool = True, **common: Unpack[RegionOptions]
    ) -> None:
        super().__init__(**common)
        self.alpha, self.beta, self.offset = alpha, beta, offset
        self.rebuild()

    def build(self) -> dict[str, tuple[float, Loss]]:
        share = number("alpha", self.alpha, 0, 1)
        cross_entropy = BalancedCrossEntropyLoss(beta=number("beta", self.beta, 0, 1), **self.pixel_options())
        return {"cross_entropy": (share, cross_entropy), "dice": (1 - share, DiceLoss(**self.region_options()))}

    def parts(self, s: PixelStats) -> tuple[Array, list[Array]]:
        value, terms = super().parts(s)
        return value if self.offset else value - (1 - self.alpha), terms


class DiceCELoss(PresetLoss):
    """Dice plus cross-entropy.

    Args:
        lambda_dice: factor of the Dice loss.
        lambda_ce: factor of the cross-entropy.
        label_smoothing: of the cross-entropy.
        common: options of :class:`DiceLoss`; mode, reduction, ignore_index and class_weight hold for both terms.

    Source: Isensee et al. 2018 (arXiv 1809.10486).
    """

    weight_setting = "lambda_dice"

    def __init__(
        self,
        *,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
        **common: Unpack[RegionOptions],
    ) -> None:
        super().__init__(**common)
        self.lambda_dice, self.lambda_ce, self.label_smoothing = lambda_dice, lambda_ce, label_smoothing
        self.rebuild()

    def build(self) -> dict[str, tuple[float, Loss]]:
        cross_entropy = CrossEntropyLoss(label_smoothing=self.label_smoothing, **self.pixel_options())
        return {
            "dice": (number("lambda_dice", self.lambda_dice), DiceLoss(**self.region_options())),
            "cross_entropy": (number("lambda_ce", self.lambda_ce), cross_entropy),
        }


class DiceFocalLoss(PresetLoss):
    """Dice plus focal.

    Args:
        lambda_dice: factor of the Dice loss.
        lambda_focal: factor of the focal loss.
        alpha: of :class:`FocalLoss`.
        gamma: of :class:`FocalLoss`.
        common: options of :class:`DiceLoss`; mode, reduction, ignore_index and class_weight hold for both terms.

    Source: Zhu et al. 2018 (AnatomyNet, arXiv 1808.05238).
    """

    weight_setting = "lambda_dice"

    def __init__(
        self,
        *,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        alpha: float | Sequence[float] | Tensor | Literal["auto"] | None = "auto",
        gamma: float = 2.0,
        **common: Unpack[RegionOptions],
    ) -> None:
        super().__init__(**common)
        self.lambda_dice, self.lambda_focal, self.alpha, self.gamma = lambda_dice, lambda_focal, alpha, gamma
        self.rebuild()

    def build(self) -> dict[str, tuple[float, Loss]]:
        focal = FocalLoss(alpha=self.alpha, gamma=self.gamma, **self.pixel_options())
        return {
            "dice": (number("lambda_dice", self.lambda_dice), DiceLoss(**self.region_options())),
            "focal": (number("lambda_focal", self.lambda_focal), focal),
        }
