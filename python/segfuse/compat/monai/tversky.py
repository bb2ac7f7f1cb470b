"""Tversky, and the Matthews correlation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...ops.formula import Array, PixelStats, where
from .._adapter import (
    groups,
    reduced,
    value,
)
from ._reading import _extent, _read, _reduction, _Segmentation
from .dice import _absolute


def _tversky(
    s: PixelStats,
    drop: bool,
    batch: bool | str,
    l1: bool,
    prices: tuple[float, float],
    smooth: tuple[float, float],
    reduction: str,
) -> Array:
    s = groups(s, drop, batch, l1)
    wrong = prices[0] * s.fp + prices[1] * s.fn
    return reduced(1 - (s.tp + smooth[0]) / (s.tp + wrong + smooth[1]), reduction)


class TverskyLoss(_Segmentation):
    """``monai.losses.TverskyLoss``."""

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction)
        self.alpha = alpha
        self.beta = beta
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.batch = batch
        self.soft_label = soft_label
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        call = _absolute(_read(self, input, target), self.soft_label)
        f = value(
            call,
            _tversky,
            drop=call.drop,
            batch=_extent(self, call.input),
            l1=self.soft_label,
            prices=(float(self.alpha), float(self.beta)),
            smooth=(self.smooth_nr, self.smooth_dr),
            reduction=_reduction(self.reduction),
        )
        return f.reshape(call.channels) if self.reduction == "none" and self.batch else f


def _mcc(s: PixelStats, drop: bool, batch: bool | str, smooth: tuple[float, float], reduction: str) -> Array:
    s = groups(s, drop, batch)
    product = s.pred * s.true * (s.n - s.true) * (s.n - s.pred)
    score = 1 - (s.tp * s.tn - s.fp * s.fn + smooth[0]) / (product + smooth[1]).sqrt()
    return reduced(where(s.fp.abs() + s.fn.abs() == 0, 0.0, score), reduction)


class MCCLoss(_Segmentation):
    """``monai.losses.MCCLoss``."""

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        reduction: str = "mean",
        smooth_nr: float = 0.0,
        smooth_dr: float = 1e-5,
        batch: bool = False,
    ) -> None:
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction)
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.batch = batch

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        call = _read(self, input, target)
        f = value(
            call,
            _mcc,
            drop=call.drop,
            batch=_extent(self, call.input),
            smooth=(self.smooth_nr, self.smooth_dr),
            reduction=_reduction(self.reduction),
        )
        return f.reshape(call.channels) if self.reduction == "none" and self.batch else f
