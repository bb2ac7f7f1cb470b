"""Focal loss: cross-entropy that fades on pixels that are already right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from ..ops.formula import Array, PixelStats
from ._base import PixelLoss, PixelOptions, number, one_of, weights_tuple

__all__ = ["FocalLoss"]


class FocalLoss(PixelLoss):
    """Focal loss: ``-(1 - p_t)^gamma log p_t``, times alpha for positives and 1 - alpha for negatives.

    Args:
        alpha: ``"auto"`` is 0.25 for a sigmoid and ``None`` for a softmax; ``None`` drops the factor. Sigmoid: a
            number, or one per channel. Softmax: a number gives class 0 the weight 1 - alpha and the others alpha; a
            sequence holds one per class.
        gamma: focusing exponent >= 0; 0 is cross-entropy. Stable for every gamma at every logit.
        activation: ``"sigmoid"`` treats a multiclass target as one sigmoid per class and averages over pixels and
            classes; ``"auto"`` follows the mode.

    Source: Lin et al. 2017 (arXiv 1708.02002) eqs. 4-5; Jadon II-D.
    """

    def __init__(
        self,
        *,
        alpha: float | Sequence[float] | Tensor | Literal["auto"] | None = "auto",
        gamma: float = 2.0,
        activation: Literal["auto", "sigmoid", "softmax"] = "auto",
        **common: Unpack[PixelOptions],
    ) -> None:
        super().__init__(**common)
        if isinstance(alpha, Sequence | Tensor) and not isinstance(alpha, str):
            alpha = weights_tuple("alpha", alpha)
        elif alpha is not None and alpha != "auto":
            alpha = number("alpha", alpha, 0, 1)
        self.alpha = alpha
        self.gamma = number("gamma", gamma)
        self.activation = one_of("activation", activation, ("auto", "sigmoid", "softmax"))

    @property
    def one_vs_rest(self) -> bool:
        return self.activation == "sigmoid"

    def pixel(self, s: PixelStats) -> Array:
        one, zero = self.entropy(s, self.gamma)
        alpha: Array = self.alpha
        if alpha == "auto":
            alpha = None if s.multiclass else 0.25
        if alpha is None:
            return self.weighted(s, one + zero)
        if s.multiclass and not isinstance(alpha, tuple):
            alpha = (1 - alpha, *[alpha] * (s.geometry.shape[1] - 1))
        if isinstance(alpha, tuple):
            vector = s.vector(alpha)
            alpha = vector[:, 1:] if self.drops_background(s) else vector
        return self.weighted(s, alpha * one if s.multiclass else alpha * one + (1 - alpha) * zero)
