"""Sensitivity and specificity as a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from ..ops.formula import Array, Call, PixelStats, ratio
from ..ops.pixel_stats import Tensors
from ._base import RegionOptions, StatsLoss, number, one_of

__all__ = ["SensitivitySpecificityLoss"]


class SensitivitySpecificityLoss(StatsLoss):
    """``1 - (w sensitivity + (1 - w) specificity)``, or the squared errors of Brosch et al.

    Args:
        form: ``"ratio"`` as above; ``"brosch"``: r times the mean squared error of the positives plus 1 - r times that
            of the negatives.
        w: weight of the sensitivity, ratio form.
        r: weight of the positives, Brosch form.
        eps: added to both denominators of the Brosch form; the ratio form uses ``smooth``.

    Source: Brosch et al., MICCAI 2015, doi:10.1007/978-3-319-24574-4_1; Jadon II-H (which prints the similarity, not
    the loss).
    """

    def __init__(
        self,
        *,
        form: Literal["ratio", "brosch"] = "ratio",
        w: float = 0.5,
        r: float = 0.05,
        eps: float = 1e-5,
        **common: Unpack[RegionOptions],
    ) -> None:
        super().__init__(**common)
        self.form = one_of("form", form, ("ratio", "brosch"))
        self.w, self.r, self.eps = number("w", w, 0, 1), number("r", r, 0, 1), number("eps", eps)

    def evaluate(self, x: Tensors, call: Call, with_terms: bool = False) -> tuple[Tensor, Sequence[Tensor]]:
        if self.form == "brosch" and x.target.dtype.is_floating_point and not call.geometry.index_target:
            soft = (x.target > 0) & (x.target < 1)
            if bool(soft.any()):
                value = float(x.target[soft][0])
                raise ValueError(
                    f"form='brosch' needs a target that is 0 or 1 everywhere; got {value:g}. Try: form='ratio'"
                )
        return super().evaluate(x, call, with_terms)

    def formula(self, s: PixelStats) -> Array:
        if self.form == "brosch":
            return self.r * ratio(s.sq_true, s.true + self.eps) + (1 - self.r) * ratio(
                s.sq_false, s.n - s.true + self.eps
            )
        sn, sd = self.smooth
        negative = s.n - s.true
        return self.w * ratio(s.fn + (sd - sn), s.true + sd) + (1 - self.w) * ratio(s.fp + (sd - sn), negative + sd)
