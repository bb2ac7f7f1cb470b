"""The asymmetric unified focal loss of two classes, and its two parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from ...ops.formula import Array, PixelStats, where
from .._adapter import (
    Call,
    Explained,
    Reading,
    Term,
    bare,
    floating,
    one_hot,
    record,
    reduced,
    total,
    value,
    warn,
)
from ._reading import _ignored, _mask_of_one_hot, _reduction


def _two_classes(
    self: Any, y_pred: Tensor, y_true: Tensor, classes: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Probabilities, one-hot target and mask, as the unified focal losses take them."""
    y_pred, y_true = floating(bare(y_pred)), bare(y_true)
    channels = y_pred.shape[1]
    mask = None
    if self.ignore_index is not None:
        label = y_true.shape[1] == 1
        mask = y_true != self.ignore_index if label else _mask_of_one_hot(y_true, self.ignore_index)
    if self.to_onehot_y and channels == 1:
        _ignored("to_onehot_y=True")
    elif self.to_onehot_y:
        labels = y_true if mask is None or 0 <= self.ignore_index < channels else torch.where(mask, y_true, 0)
        y_true = one_hot(labels.long().squeeze(1), classes or channels)
    return y_pred, y_true, mask


def _asymmetric_tversky(s: PixelStats, delta: float, gamma: float, epsilon: float, reduction: str) -> Array:
    ratio = (s.tp + epsilon) / (s.tp + delta * s.fn + (1 - delta) * s.fp + epsilon)
    background = s.vector((1.0, 0.0))
    wrong = 1 - ratio
    # where(): the power of the background is not taken, nor is its infinite slope at 0
    power = where(background > 0, 1.0, wrong) ** (1 - gamma)
    return reduced(where(background > 0, wrong, power), reduction)


class AsymmetricFocalTverskyLoss(Explained, _Loss):
    """``monai.losses.unified_focal_loss.AsymmetricFocalTverskyLoss``, of probabilities of two classes."""

    def __init__(
        self,
        to_onehot_y: bool = False,
        delta: float = 0.7,
        gamma: float = 0.75,
        epsilon: float = 1e-7,
        reduction: str = "mean",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        self.to_onehot_y = to_onehot_y
        self.delta = delta
        self.gamma = gamma
        self.epsilon = epsilon
        self.ignore_index = ignore_index

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return _focal_tversky_loss(self, *_two_classes(self, y_pred, y_true))


def _same_shape(y_pred: Tensor, y_true: Tensor) -> None:
    if y_true.shape != y_pred.shape:
        raise ValueError(
            f"ground truth has different shape ({y_true.shape}) from input ({y_pred.shape}). "
            "Try: to_onehot_y=True for a target of class numbers"
        )


def _clamped(self: Any, y_pred: Tensor) -> Tensor:
    if y_pred.shape[1] != 2:
        raise IndexError(f"the unified focal losses are for two classes; got {y_pred.shape[1]}")
    return y_pred.clamp(self.epsilon, 1 - self.epsilon)


def _focal_tversky_loss(self: Any, y_pred: Tensor, y_true: Tensor, mask: Tensor | None) -> Tensor:
    _same_shape(y_pred, y_true)
    return value(
        Call(_clamped(self, y_pred), y_true, Reading("multilabel", from_logits=False), mask),
        _asymmetric_tversky,
        delta=float(self.delta),
        gamma=float(self.gamma),
        epsilon=float(self.epsilon),
        reduction=_reduction(self.reduction),
    )


def _asymmetric_focal(s: PixelStats, delta: float, gamma: float, reduction: str) -> Array:
    back, front = s.term("focal", gamma)[0], s.term("focal", 0.0)[0]
    loss = (1 - delta) * s.vector((1.0, 0.0)) * back + delta * s.vector((0.0, 1.0)) * front
    return loss.sum() if reduction != "mean" else loss.sum() / s.count.sum().clamp(min=1.0)


class AsymmetricFocalLoss(Explained, _Loss):
    """``monai.losses.unified_focal_loss.AsymmetricFocalLoss``, of probabilities of two classes."""

    def __init__(
        self,
        to_onehot_y: bool = False,
        delta: float = 0.7,
        gamma: float = 2,
        epsilon: float = 1e-7,
        reduction: str = "mean",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        self.to_onehot_y = to_onehot_y
        self.delta = delta
        self.gamma = gamma
        self.epsilon = epsilon
        self.ignore_index = ignore_index

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return _asymmetric_focal_loss(self, *_two_classes(self, y_pred, y_true))


def _asymmetric_focal_loss(self: Any, y_pred: Tensor, y_true: Tensor, mask: Tensor | None) -> Tensor:
    _same_shape(y_pred, y_true)
    call = Call(_clamped(self, y_pred), y_true, Reading("multilabel", from_logits=False), mask)
    reduction = _reduction(self.reduction)
    term = Term(_asymmetric_focal, delta=float(self.delta), gamma=float(self.gamma), reduction=reduction)
    if reduction != "none":
        return total((1.0, call, term))
    record("a map of two classes")
    p, y = call.input, y_true.to(call.input.dtype)
    entropy = -y * p.log() if mask is None else -y * p.log() * mask
    back = (1 - self.delta) * (1 - p[:, 0]) ** self.gamma * entropy[:, 0]
    return torch.stack([back, self.delta * entropy[:, 1]], 1)


class AsymmetricUnifiedFocalLoss(Explained, _Loss):
    """``monai.losses.AsymmetricUnifiedFocalLoss``, of probabilities; ``reduction`` has no effect."""

    def __init__(
        self,
        to_onehot_y: bool = False,
        num_classes: int = 2,
        weight: float = 0.5,
        gamma: float = 0.5,
        delta: float = 0.7,
        reduction: str = "mean",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        self.to_onehot_y = to_onehot_y
        self.num_classes = num_classes
        self.gamma = gamma
        self.delta = delta
        self.weight: float = weight
        self.asy_focal_loss = AsymmetricFocalLoss(gamma=gamma, delta=delta)
        self.asy_focal_tversky_loss = AsymmetricFocalTverskyLoss(gamma=gamma, delta=delta)
        self.ignore_index = ignore_index

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        if y_pred.dim() not in (4, 5):
            raise ValueError(f"input shape must be 4 or 5, but got {y_pred.shape}")
        channels = y_pred.shape[1]
        if channels == 1 and self.ignore_index is not None:
            warn("single channel prediction, `ignore_index` is applied to label-encoded targets.")
        if channels == 1 or not self.to_onehot_y:
            _same_shape(y_pred, y_true)
        p, y, mask = _two_classes(self, y_pred, y_true, self.num_classes)
        if channels == 1:
            p = torch.cat([1 - p, p], 1)
            y = torch.cat([1 - y.to(p.dtype), y.to(p.dtype)], 1)
        if self.ignore_index is None and not y.dtype == torch.bool and bool(y.max() > self.num_classes - 1):
            raise ValueError(f"Invalid class index found. Maximum class should be {self.num_classes - 1}")
        if mask is not None:  # ignored pixels count as wrong in the inner losses: they see zeros there
            p, y = torch.where(mask, p, 0), torch.where(mask, y, torch.zeros_like(y))
        focal = _asymmetric_focal_loss(self.asy_focal_loss, p, y, None)
        tversky = _focal_tversky_loss(self.asy_focal_tversky_loss, p, y, None)
        return self.weight * focal + (1 - self.weight) * tversky
