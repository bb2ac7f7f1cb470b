"""Matthews correlation coefficient."""

from __future__ import annotations

from typing import Literal

from typing_extensions import Unpack

from ..ops.formula import Array, PixelStats, ratio, where
from ._base import RegionOptions, StatsLoss, number, one_of

__all__ = ["MCCLoss"]


class MCCLoss(StatsLoss):
    """1 minus the Matthews correlation coefficient of soft prediction and target.

    Args:
        eps: added under the square root, on shares of pixels (free of scale).
        perfect: ``"zero"`` returns 0 where there is no false positive and no false negative at all.

    An empty or full target has no correlation: loss 1, gradient 0. ``smooth`` has no place here and is not used.
    Source: Abhishek and Hamarneh 2021, ISBI, eqs. 3-5.
    """

    def __init__(
        self, *, eps: float = 1e-12, perfect: Literal["formula", "zero"] = "formula", **common: Unpack[RegionOptions]
    ) -> None:
        super().__init__(**common)
        self.eps = number("eps", eps)
        self.perfect = one_of("perfect", perfect, ("formula", "zero"))

    def formula(self, s: PixelStats) -> Array:
        overlap, pred, true = ratio(s.tp, s.n), ratio(s.pred, s.n), ratio(s.true, s.n)
        variance = (pred * (1 - pred)).clamp(min=0.0) * (true * (1 - true)).clamp(min=0.0)
        loss = 1 - (overlap - pred * true) / (variance + self.eps).sqrt()
        loss = where(s.true_count < s.count, loss, 1.0)  # full: quotients of what rounding leaves of 0
        return where(s.fp + s.fn == 0, 0.0, loss) if self.perfect == "zero" else loss
