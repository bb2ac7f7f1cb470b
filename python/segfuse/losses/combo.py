"""Weighted sums of a distribution and a region loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from typing_extensions import Unpack

from ..ops.formula import Array, PixelStats
from ._base import CompoundLoss, RegionOptions, number
from .cross_entropy import BalancedCrossEntropyLoss, CrossEntropyLoss
from .dice import DiceLoss
from .focal import FocalLoss

__all__ = ["ComboLoss", "DiceCELoss", "DiceFocalLoss"]

SHARED = ("mode", "from_logits", "reduction", "ignore_index", "class_weight")


def shared(options: dict[str, Any]) -> dict[str, Any]:
    """The options that every term takes; the others belong to the region term."""
    return {name: value for name, value in options.items() if name in SHARED}


class ComboLoss(CompoundLoss):
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

    def __init__(
        self, *, alpha: float = 0.5, beta: float = 0.5, offset: bool = True, **common: Unpack[RegionOptions]
    ) -> None:
        self_alpha = number("alpha", alpha, 0, 1)
        options: dict[str, Any] = dict(common)
        super().__init__(
            {
                "cross_entropy": (
                    self_alpha,
                    BalancedCrossEntropyLoss(beta=number("beta", beta, 0, 1), **shared(options)),
                ),
                "dice": (1 - self_alpha, DiceLoss(**options)),
            }
        )
        self.alpha, self.beta, self.offset = alpha, beta, bool(offset)

    def parts(self, s: PixelStats) -> tuple[Array, list[Array]]:
        value, terms = super().parts(s)
        return value if self.offset else value - (1 - self.alpha), terms


class DiceCELoss(CompoundLoss):
    """Dice plus cross-entropy.

    Args:
        lambda_dice: factor of the Dice loss.
        lambda_ce: factor of the cross-entropy.
        label_smoothing: of the cross-entropy.
        common: options of :class:`DiceLoss`; mode, reduction, ignore_index and class_weight hold for both terms.

    Source: Isensee et al. 2018 (arXiv 1809.10486).
    """

    def __init__(
        self,
        *,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
        **common: Unpack[RegionOptions],
    ) -> None:
        options: dict[str, Any] = dict(common)
        super().__init__(
            {
                "dice": (number("lambda_dice", lambda_dice), DiceLoss(**options)),
                "cross_entropy": (
                    number("lambda_ce", lambda_ce),
                    CrossEntropyLoss(label_smoothing=label_smoothing, **shared(options)),
                ),
            }
        )
        self.lambda_dice, self.lambda_ce, self.label_smoothing = lambda_dice, lambda_ce, label_smoothing


class DiceFocalLoss(CompoundLoss):
    """Dice plus focal.

    Args:
        lambda_dice: factor of the Dice loss.
        lambda_focal: factor of the focal loss.
        alpha: of :class:`FocalLoss`.
        gamma: of :class:`FocalLoss`.
        common: options of :class:`DiceLoss`; mode, reduction, ignore_index and class_weight hold for both terms.

    Source: Zhu et al. 2018 (AnatomyNet, arXiv 1808.05238).
    """

    def __init__(
        self,
        *,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        alpha: float | Sequence[float] | Tensor | Literal["auto"] | None = "auto",
        gamma: float = 2.0,
        **common: Unpack[RegionOptions],
    ) -> None:
        options: dict[str, Any] = dict(common)
        super().__init__(
            {
                "dice": (number("lambda_dice", lambda_dice), DiceLoss(**options)),
                "focal": (number("lambda_focal", lambda_focal), FocalLoss(alpha=alpha, gamma=gamma, **shared(options))),
            }
        )
        self.lambda_dice, self.lambda_focal, self.alpha, self.gamma = lambda_dice, lambda_focal, alpha, gamma
