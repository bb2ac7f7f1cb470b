"""The focal loss, and its two functions of elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss

from ...ops.formula import Array, PixelStats, where
from .._adapter import (
    Call,
    Explained,
    SoftTarget,
    Term,
    by_torch_because,
    groups,
    numbers,
    one_hot,
    per_class,
    pixel_map,
    record,
    total,
    warn,
)
from ._reading import Weight, _Read, _read, _reduction


def _focal(
    s: PixelStats,
    drop: bool,
    gamma: float,
    alpha: Any,
    weight: Any,
    reduction: str,
    masked: bool,
) -> Array:
    """Sums of every class, as MONAI divides them: by elements, or with ignored pixels by the number of valid ones."""
    a, w = per_class(s, alpha, drop), per_class(s, weight, drop)
    valid = s.count[:, :1] if masked else s.pixels
    channels = s.geometry.shape[1] - drop
    softmax = s.multiclass
    s = groups(s, drop, False)
    one, zero = s.term("focal", gamma)
    if alpha is None:
        loss = one + zero
    elif softmax:
        loss = a * one
    else:
        loss = a * one + (zero if isinstance(alpha, tuple) else (1 - a) * zero)
    loss = w * loss
    if reduction == "none":
        return loss.sum()  # of the map
    if reduction == "sum":
        return (loss / where(valid > 0, valid, 1.0)).sum() if masked else loss.sum() / valid
    if masked:
        divisor = valid.sum()
        return loss.sum() / where(divisor > 0, divisor, 1.0)
    return loss.sum() / (valid * s.samples * channels)


class FocalLoss(Explained, _Loss):
    """``monai.losses.FocalLoss``: a sigmoid for every channel, unless ``use_softmax``."""

    class_weight: Tensor | None

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        weight: Weight = None,
        reduction: str = "mean",
        use_softmax: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.gamma = gamma
        self.weight = weight
        self.use_softmax = use_softmax
        self.alpha: float | Tensor | None = (
            None if alpha is None else float(alpha) if isinstance(alpha, int | float) else torch.as_tensor(alpha)
        )
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _focal_loss(self, _focal_read(self, input, target))


def _focal_read(self: Any, input: Tensor, target: Tensor, **changed: Any) -> _Read:
    return _read(
        self, input, target, ValueError, True, sigmoid=not self.use_softmax, softmax=False, other_act=None, **changed
    )


def _focal_settings(self: Any, call: _Read) -> dict[str, Any]:
    channels = call.channels
    alpha, weight = numbers(self.alpha), numbers(self.class_weight)
    if isinstance(alpha, float) and self.use_softmax:
        if not self.include_background:
            warn("`include_background=False`, scalar `alpha` ignored when using softmax.")
            alpha = None
        else:
            alpha = (1 - alpha, *[alpha] * (channels - 1))
    if isinstance(alpha, tuple) and len(alpha) != channels:
        raise ValueError(f"The length of alpha ({len(alpha)}) must match the number of classes ({channels}).")
    if isinstance(weight, tuple):
        if channels == 1:
            raise ValueError("Per-class class_weight is not supported for single-channel outputs.")
        if len(weight) != channels:
            raise ValueError(
                f"The number of class_weight ({len(weight)}) must match the number of output channels ({channels})."
            )
    if weight is not None and min(weight if isinstance(weight, tuple) else (weight,)) < 0:
        raise ValueError("class_weight values must be non-negative.")
    return {"gamma": float(self.gamma), "alpha": alpha, "weight": weight}


def _focal_parts(self: Any, call: _Read, settings: dict[str, Any]) -> tuple[Call, Term] | None:
    """The pass that computes it, if there is one."""
    if call.mask is not None and call.mask.dtype != torch.bool:
        return None
    reduction = _reduction(self.reduction)
    if reduction == "sum" and call.input.ndim == 2:
        reduction = "mean"  # a mean over no axes is one over all
    masked = self.ignore_index is not None
    if not self.use_softmax:
        return call, Term(_focal, hard_alone=True, drop=call.drop, reduction=reduction, masked=masked, **settings)
    if reduction == "none" or call.channels == 1 or (call.drop and masked):
        return None
    index = call.reading.mode == "multiclass"
    reading = replace(call.reading, mode="multiclass", from_logits=True, one_vs_rest=False)
    input, target = call.input, call.target
    if call.drop:  # a softmax over the classes that are left; pixels of class 0 count as pixels without a class
        input = input[:, 1:]
        target = (target.long() - 1) if index else target[:, 1:]
        reading = replace(reading, ignore_index=-1) if index else reading
    return Call(input, target, reading, call.mask), Term(
        _focal, drop=False, reduction=reduction, masked=masked, **settings
    )


def _focal_loss(self: Any, call: _Read) -> Tensor:
    settings = _focal_settings(self, call)
    parts = _focal_parts(self, call, settings)
    if parts is None or (self.reduction == "none" and by_torch_because(call.input, call.target)):
        return _focal_by_torch(self, call, settings)
    try:
        if self.reduction == "none":
            return pixel_map(*parts)[:, int(call.drop) :].float()
        return total((1.0, *parts)).float()
    except (SoftTarget, ValueError):
        return _focal_by_torch(self, call, settings)


def _focal_by_torch(self: Any, call: _Read, settings: dict[str, Any]) -> Tensor:
    """The same in torch operations, for soft targets and rare combinations."""
    record("a soft target, or a map of a softmax", call)
    input, target, mask = call.input.float(), call.target, call.mask
    if self.ignore_index is not None and mask is None:
        mask = target != self.ignore_index
    index = call.reading.mode == "multiclass"
    if index:
        labels = target.long() if mask is None else torch.where(mask, target, 0).long()
        target = one_hot(labels.squeeze(1), input.shape[1])
    target = target.float()
    if call.drop:
        input, target = input[:, 1:], target[:, 1:]
    m = None if mask is None else mask.float()
    if m is not None:
        input, target = torch.where(m > 0, input * m, 0), target * m
    alpha = settings["alpha"]
    alpha = torch.tensor(alpha) if isinstance(alpha, tuple) else alpha
    function = softmax_focal_loss if self.use_softmax else sigmoid_focal_loss
    loss = function(input, target, settings["gamma"], alpha)
    loss = loss if m is None else loss * m
    if settings["weight"] is not None:
        loss = loss * _along_channels(torch.tensor(settings["weight"], device=loss.device), loss)
    reduction = _reduction(self.reduction)
    if reduction == "none":
        return loss
    spatial = list(range(2, loss.ndim))
    if reduction == "sum":
        if m is None:
            return loss.mean(spatial).sum()
        return (loss.sum(spatial, keepdim=True) / m.sum(spatial, keepdim=True).clamp(min=1e-7)).sum()
    return loss.mean() if m is None else loss.sum() / m.sum().clamp(min=1e-7)


def _along_channels(x: Tensor, like: Tensor) -> Tensor:
    return x if x.ndim == 0 else x.reshape(-1, *[1] * (like.ndim - 2)).to(like)


def softmax_focal_loss(
    input: Tensor, target: Tensor, gamma: float = 2.0, alpha: float | Tensor | None = None
) -> Tensor:
    """``monai.losses.focal_loss.softmax_focal_loss``: of every element."""
    log_p = input.log_softmax(1)
    loss = -((1 - log_p.exp()) ** gamma) * log_p * target
    if alpha is None:
        return loss
    a = torch.as_tensor(alpha, dtype=loss.dtype, device=loss.device)
    if a.ndim == 0:
        a = torch.stack([1 - a, *[a] * (target.shape[1] - 1)])
    _check_alpha(a, target)
    return _along_channels(a, loss) * loss


def sigmoid_focal_loss(
    input: Tensor, target: Tensor, gamma: float = 2.0, alpha: float | Tensor | None = None
) -> Tensor:
    """``monai.losses.focal_loss.sigmoid_focal_loss``: of every element; any target."""
    entropy = input - input * target - F.logsigmoid(input)
    loss = torch.exp(gamma * F.logsigmoid(input * (1 - 2 * target))) * entropy
    if alpha is None:
        return loss
    a = torch.as_tensor(alpha, dtype=loss.dtype, device=loss.device)
    if a.ndim == 0:
        return (target * a + (1 - target) * (1 - a)) * loss
    _check_alpha(a, target)
    return torch.where(target == 1, _along_channels(a, loss), 1.0) * loss


def _check_alpha(alpha: Tensor, target: Tensor) -> None:
    if alpha.shape[0] != target.shape[1]:
        raise ValueError(
            f"The length of alpha ({alpha.shape[0]}) must match the number of classes ({target.shape[1]})."
        )
