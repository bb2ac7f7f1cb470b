"""Dice, masked, generalized and Wasserstein Dice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from ...ops.formula import Array, PixelStats, where
from .._adapter import (
    Explained,
    Term,
    bare,
    floating,
    groups,
    one_hot,
    per_class,
    reduced,
    total,
    warn,
)
from ._reading import (
    Weight,
    _check_activation,
    _class_weights,
    _extent,
    _ignored,
    _Read,
    _read,
    _reduction,
    _Segmentation,
)


def _dice(
    s: PixelStats,
    drop: bool,
    batch: bool | str,
    squared: bool,
    l1: bool,
    jaccard: bool,
    smooth: tuple[float, float],
    weight: tuple[float, ...] | None,
    reduction: str,
) -> Array:
    w = per_class(s, weight, drop)
    s = groups(s, drop, batch, l1 and not squared)
    tp = s.tp
    sizes = s.pred2 + s.true2 if squared else s.pred + s.true
    f = 1 - (2 * tp + smooth[0]) / ((2 * (sizes - tp) if jaccard else sizes) + smooth[1])
    return reduced(f if weight is None else w * f, reduction)


def _dice_term(self: Any, call: _Read) -> Term:
    return Term(
        _dice,
        drop=call.drop,
        batch=_extent(self, call.input),
        squared=self.squared_pred,
        l1=self.soft_label,
        jaccard=self.jaccard,
        smooth=(self.smooth_nr, self.smooth_dr),
        weight=_class_weights(self, call.channels),
        reduction=_reduction(self.reduction),
    )


def _absolute(call: _Read, l1: bool) -> _Read:
    """The l1 form takes |p| for the size of a prediction, which matters for logits taken as probabilities."""
    call.absolute = l1 and not call.reading.from_logits and bool((call.input.detach() < 0).any())
    return call


class DiceLoss(_Segmentation):
    """``monai.losses.DiceLoss``."""

    class_weight: Tensor | None

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Weight = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction)
        self.squared_pred = squared_pred
        self.jaccard = jaccard
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.batch = batch
        self.ignore_index = ignore_index
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))
        self.soft_label = soft_label

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _dice_loss(self, _read(self, input, target))


def _dice_loss(self: Any, call: _Read) -> Tensor:
    call = _absolute(call, self.soft_label and not self.squared_pred)
    f = total((1.0, call, _dice_term(self, call)))
    f = f.reshape(call.channels) if self.batch and self.reduction == "none" else f
    return call.shaped(f) if self.reduction == "none" else f


class MaskedDiceLoss(DiceLoss):
    """``monai.losses.MaskedDiceLoss``: prediction and target times a mask, after the activation."""

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Weight = None,
        soft_label: bool = False,
    ) -> None:
        _check_activation(sigmoid, softmax, other_act)
        self.pre_sigmoid = sigmoid
        self.pre_softmax = softmax
        self.pre_other_act = other_act
        super().__init__(
            include_background=include_background,
            to_onehot_y=to_onehot_y,
            squared_pred=squared_pred,
            jaccard=jaccard,
            reduction=reduction,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            batch=batch,
            weight=weight,
            soft_label=soft_label,
        )

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        activation: dict[str, Any] = {
            "sigmoid": self.pre_sigmoid,
            "softmax": self.pre_softmax,
            "other_act": self.pre_other_act,
        }
        if mask is None:
            warn("No mask value specified for the MaskedLoss.")
            return _dice_loss(self, _read(self, input, target, **activation))
        mask = bare(mask)
        _check_mask(input, target, mask)
        dense = not self.to_onehot_y or input.shape[1] == 1
        if dense and mask.shape[2:] == input.shape[2:] and bool(((mask == 0) | (mask == 1)).all()):
            call = _read(self, input, target, **activation)
            call.mask = mask.expand(input.shape[0], *mask.shape[1:])
            return _dice_loss(self, call)
        if self.pre_sigmoid:
            input = torch.sigmoid(input)
        if self.pre_softmax:
            if input.shape[1] == 1:
                _ignored("softmax=True")
            else:
                input = torch.softmax(input, 1)
        if self.pre_other_act is not None:
            input = self.pre_other_act(input)
        return _dice_loss(self, _read(self, bare(input) * mask, bare(target) * mask))


def _check_mask(input: Tensor, target: Tensor, mask: Tensor) -> None:
    if input.dim() != mask.dim():
        warn(f"Dim of input ({input.shape}) is different from mask ({mask.shape}).")
    if input.shape[0] != mask.shape[0] and mask.shape[0] != 1:
        raise ValueError(f"Batch size of mask ({mask.shape}) must be one or equal to input ({input.shape}).")
    if target.dim() > 1:
        if mask.shape[1] != 1:
            raise ValueError(f"Mask ({mask.shape}) must have only one channel.")
        if input.shape[2:] != mask.shape[2:]:
            warn(f"Spatial size of input ({input.shape}) is different from mask ({mask.shape}).")


def _generalized_dice(
    s: PixelStats, drop: bool, batch: bool | str, l1: bool, weighting: str, smooth: tuple[float, float], reduction: str
) -> Array:
    s = groups(s, drop, batch, l1)
    size = where(s.true > 0, s.true, 1.0)
    w = size / size if weighting == "uniform" else 1 / size if weighting == "simple" else 1 / (size * size)
    if weighting != "uniform":  # an absent class gets the largest weight
        known = where(s.true > 0, w, 0.0)
        w = where(s.true > 0, w, known.amax(1, keepdim=True))
    w = w.detach()
    overlap = (2 * w * s.tp).sum(1, keepdim=True) + smooth[0]
    return reduced(1 - overlap / ((w * (s.pred + s.true)).sum(1, keepdim=True) + smooth[1]), reduction)


class GeneralizedDiceLoss(_Segmentation):
    """``monai.losses.GeneralizedDiceLoss``."""

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        w_type: str = "square",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
    ) -> None:
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction)
        self.w_type = _option("w_type", w_type, ("simple", "square", "uniform"))
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.batch = batch
        self.soft_label = soft_label

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _generalized_dice_loss(self, _absolute(_read(self, input, target), self.soft_label))


def _generalized_dice_loss(self: Any, call: _Read) -> Tensor:
    f = total((1.0, call, _generalized_dice_term(self, call)))
    if self.reduction != "none":
        return f
    return f.reshape(1 if self.batch else len(call.input), 1, *[1] * (call.input.ndim - 2 - bool(self.batch)))


def _generalized_dice_term(self: Any, call: _Read) -> Term:
    return Term(
        _generalized_dice,
        drop=call.drop,
        batch=self.batch,
        l1=self.soft_label,
        weighting=str(getattr(self.w_type, "value", self.w_type)),
        smooth=(self.smooth_nr, self.smooth_dr),
        reduction=_reduction(self.reduction),
    )


def _option(name: str, value: Any, allowed: Sequence[str]) -> str:
    word = str(getattr(value, "value", value))
    if word not in allowed:
        raise ValueError(f"Unsupported {name} '{word}', available options are {list(allowed)}.")
    return word


class GeneralizedWassersteinDiceLoss(Explained, _Loss):
    """``monai.losses.GeneralizedWassersteinDiceLoss``, in torch operations."""

    def __init__(
        self,
        dist_matrix: Any,
        weighting_mode: str = "default",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        if dist_matrix.shape[0] != dist_matrix.shape[1]:
            raise ValueError(f"dist_matrix must be C x C, got {dist_matrix.shape[0]} x {dist_matrix.shape[1]}.")
        if weighting_mode not in ("default", "GDL"):
            raise ValueError(f"weighting_mode must be either 'default' or 'GDL', got {weighting_mode}.")
        self.m = torch.as_tensor(dist_matrix)
        if torch.max(self.m) != 1:
            self.m = self.m / torch.max(self.m)
        self.alpha_mode = weighting_mode
        self.num_classes = self.m.size(0)
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        input, target = bare(input), bare(target)
        labels = target.reshape(target.size(0), 1, -1).long()
        p = floating(input).flatten(2).softmax(1)
        distances = self.m.to(p.device)
        dtype = torch.promote_types(p.dtype, distances.dtype)
        cost = torch.einsum("kc,ncs->nks", distances.to(dtype), p.to(dtype)).gather(1, labels).squeeze(1)
        if self.alpha_mode == "GDL":  # every class by its volume
            hot = one_hot(labels.squeeze(1), self.num_classes)
            alpha = 1 / (hot.sum(2) + 1.0)
        else:  # everything but the background
            alpha = torch.ones((len(labels), self.num_classes), device=p.device)
            alpha[:, 0] = 0
        share = alpha.gather(1, labels.squeeze(1))
        true = (share * (1 - cost)).sum(1)
        error = (share * (2 - cost)).sum(1) if self.alpha_mode == "GDL" else 2 * true + cost.sum(1)
        f = 1 - (2 * true + self.smooth_nr) / (error + self.smooth_dr)
        return _finish(f, self.reduction)


def _finish(f: Tensor, reduction: str) -> Tensor:
    return f.mean() if reduction == "mean" else f.sum() if reduction == "sum" else f
