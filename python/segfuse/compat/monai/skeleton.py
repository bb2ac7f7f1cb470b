"""clDice on soft skeletons, in torch operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss

from .._adapter import (
    Explained,
    Sums,
    record,
)
from ._reading import _ignored, _read, _reduction, _Segmentation
from .compound import _check_pair
from .dice import DiceLoss, _dice_loss, _finish


def _erode(x: Tensor) -> Tensor:
    """The smallest value of a pixel and its face neighbours."""
    pool: Any = F.max_pool2d if x.ndim == 4 else F.max_pool3d
    axes = x.ndim - 2
    least = None
    for axis in range(axes):
        size = [3 if a == axis else 1 for a in range(axes)]
        along = -pool(-x, size, 1, [n // 2 for n in size])
        least = along if least is None else torch.minimum(least, along)
    assert least is not None
    return least


def _skeleton(x: Tensor, steps: int) -> Tensor:
    """Soft skeleton: what every erosion of x loses when it is opened (Shit et al. 2021, arXiv 2003.07311)."""
    pool: Any = F.max_pool2d if x.ndim == 4 else F.max_pool3d
    found: Any = None
    for step in range(steps + 1):
        x = x if step == 0 else _erode(x)
        ridge = F.relu(x - pool(_erode(x), 3, 1, 1))
        found = ridge if found is None else found + F.relu(ridge - found * ridge)
    return found


class SoftclDiceLoss(_Segmentation):
    """``monai.losses.SoftclDiceLoss``, in torch operations."""

    def __init__(
        self,
        iter_: int = 3,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        smooth: float = 1e-4,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction)
        if not isinstance(iter_, int):
            raise TypeError(f"iter_ must be an integer but got {type(iter_).__name__}.")
        if iter_ < 0:
            raise ValueError(f"iter_ must be a non-negative integer but got {iter_}.")
        if smooth <= 0:
            raise ValueError(f"smooth must be a positive value but got {smooth}.")
        self.iter = iter_
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.smooth = float(smooth)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _cl_dice(self, input, target, bool(self.to_onehot_y))


def _cl_dice(self: Any, input: Tensor, target: Tensor, index: bool) -> Tensor:
    call = _read(self, input, target, to_onehot_y=index)
    record("soft skeletons are made of poolings")
    sums = Sums(call.plain())
    p, y = sums.p[:, int(call.drop) :], sums.y[:, int(call.drop) :]
    axes = list(range(1, p.ndim))

    def share(skeleton: Tensor, mask: Tensor) -> Tensor:
        return ((skeleton * mask).sum(axes) + self.smooth_nr) / (skeleton.sum(axes) + self.smooth_dr)

    precision, sensitivity = share(_skeleton(p, self.iter), y), share(_skeleton(y, self.iter), p)
    f = 1 - 2 * precision * sensitivity / (precision + sensitivity + self.smooth)
    return _finish(f, _reduction(self.reduction))


class SoftDiceclDiceLoss(Explained, _Loss):
    """``monai.losses.SoftDiceclDiceLoss``."""

    def __init__(
        self,
        iter_: int = 3,
        alpha: float = 0.5,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        smooth: float = 1e-4,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1] but got {alpha}.")
        self.dice = DiceLoss(
            include_background=include_background,
            sigmoid=sigmoid,
            softmax=softmax,
            other_act=other_act,
            reduction=reduction,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
        )
        self.cldice = SoftclDiceLoss(
            iter_=iter_,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            smooth=smooth,
            include_background=include_background,
            sigmoid=sigmoid,
            softmax=softmax,
            other_act=other_act,
            reduction=reduction,
        )
        self.alpha = alpha
        self.to_onehot_y = to_onehot_y

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        _check_pair(input, target)
        index = self.to_onehot_y
        if index and input.shape[1] == 1:
            _ignored("to_onehot_y=True")
            index = False
        dice = _dice_loss(self.dice, _read(self.dice, input, target, to_onehot_y=index))
        return (1 - self.alpha) * dice + self.alpha * _cl_dice(self.cldice, input, target, index)
