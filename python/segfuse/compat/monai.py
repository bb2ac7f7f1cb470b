"""``monai.losses``: the segmentation losses of MONAI 1.6."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from ..losses.boundary import BoundaryLoss as _Boundary
from ..losses.deep_supervision import nearest
from ..losses.hausdorff import HausdorffDTLoss as _HausdorffDT
from ..losses.structural_similarity import SSIMLoss as _SSIM
from ..ops.distance_transform_edt import distance_transform_edt
from ..ops.formula import Array, PixelStats, where
from ..ops.local_moments import local_moments
from ._adapter import (
    NEVER,
    Call,
    Explained,
    Reading,
    SoftTarget,
    Sums,
    Term,
    bare,
    binary_cross_entropy,
    by_torch_because,
    cross_entropy,
    floating,
    groups,
    numbers,
    one_hot,
    per_class,
    pixel_map,
    record,
    reduced,
    total,
    value,
    warn,
)

__all__ = [
    "AsymmetricFocalLoss",
    "AsymmetricFocalTverskyLoss",
    "AsymmetricUnifiedFocalLoss",
    "BoundaryLoss",
    "DeepSupervisionLoss",
    "Dice",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "GeneralizedDiceFocalLoss",
    "GeneralizedDiceLoss",
    "GeneralizedWassersteinDiceLoss",
    "HausdorffDTLoss",
    "LocalNormalizedCrossCorrelationLoss",
    "LogHausdorffDTLoss",
    "MCCLoss",
    "MaskedDiceLoss",
    "MaskedLoss",
    "MultiScaleLoss",
    "NACLLoss",
    "SSIMLoss",
    "SoftDiceclDiceLoss",
    "SoftclDiceLoss",
    "TverskyLoss",
    "dice_ce",
    "dice_focal",
    "ds_loss",
    "generalized_dice",
    "generalized_dice_focal",
    "generalized_wasserstein_dice",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
]

Weight = Sequence[float] | float | int | Tensor | None


# ------------------------------------------------------------------------------------------- how MONAI reads a call


def _reduction(value: Any) -> str:
    """A name or a member of MONAI's enumeration."""
    name = str(getattr(value, "value", value))
    if name not in ("none", "mean", "sum"):
        raise ValueError(f'Unsupported reduction: {name}, available options are ["mean", "sum", "none"].')
    return name


class _Segmentation(Explained, _Loss):
    """Options that nearly every loss of MONAI has."""

    def __init__(
        self,
        include_background: bool,
        to_onehot_y: bool,
        sigmoid: bool,
        softmax: bool,
        other_act: Callable[[Tensor], Tensor] | None,
        reduction: str,
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        _check_activation(sigmoid, softmax, other_act)
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act


def _check_activation(sigmoid: bool, softmax: bool, other_act: Any) -> None:
    if other_act is not None and not callable(other_act):
        raise TypeError(f"other_act must be None or callable but is {type(other_act).__name__}.")
    if int(sigmoid) + int(softmax) + int(other_act is not None) > 1:
        raise ValueError("Incompatible values: more than 1 of [sigmoid=True, softmax=True, other_act is not None].")


def _extent(self: Any, input: Tensor) -> bool | str:
    """What is summed over besides space; without spatial axes MONAI sums over all there is."""
    return "all" if input.ndim == 2 and not self.batch else bool(self.batch)


@dataclass
class _Read(Call):
    drop: bool = False  # leaves out class 0
    channels: int = 1  # that are left

    def shaped(self, x: Tensor) -> Tensor:
        """With one axis for every spatial one, as MONAI returns it without a reduction."""
        return x.reshape((*x.shape, *[1] * (self.input.ndim - 2)))


def _ignored(option: str) -> None:
    warn(f"single channel prediction, `{option}` ignored.")


def _read(
    self: Any,
    input: Tensor,
    target: Tensor,
    error: type[Exception] = AssertionError,
    keep_mask: bool = False,
    **changed: Any,
) -> _Read:
    """How ``self`` reads a call; ``changed`` replaces its options."""

    def option(name: str, default: Any = None) -> Any:
        return changed.get(name, getattr(self, name, default))

    input, target = bare(input), bare(target)
    channels = input.shape[1]
    softmax, sigmoid, index = option("softmax"), option("sigmoid"), option("to_onehot_y")
    if softmax and channels == 1:
        _ignored("softmax=True")
        softmax = False
    if option("other_act") is not None:
        input = option("other_act")(input)
    if index and channels == 1:
        _ignored("to_onehot_y=True")
        index = False
    drop = not option("include_background")
    if drop and channels == 1:
        _ignored("include_background=False")
        drop = False
    if index:
        target = target if target.ndim > 1 else target.unsqueeze(1)
        if target.shape[1] != 1:
            raise AssertionError(
                f"labels should have a channel with length equal to one; got {tuple(target.shape)}. "
                "Try: to_onehot_y=False for a target that is one-hot already"
            )
        shape = (target.shape[0], channels, *target.shape[2:])
    else:
        shape = tuple(target.shape)
    if shape != tuple(input.shape):
        raise error(
            f"ground truth has different shape ({shape}) from input ({tuple(input.shape)}). "
            "Try: to_onehot_y=True for a target of class numbers"
        )
    ignore_index, mask = option("ignore_index"), None
    if ignore_index is not None and not (index or channels == 1):
        mask = _mask_of_one_hot(target, ignore_index)
        ignore_index = None
        if mask.dtype != torch.bool and not keep_mask:  # shares of pixels: times prediction and target
            input = input.softmax(1) if softmax else input.sigmoid() if sigmoid else input
            input, target, mask, softmax, sigmoid = input * mask, target * mask, None, False, False
    exclusive = bool(softmax)
    mode = "multiclass" if index or exclusive else "multilabel" if channels > 1 else "binary"
    reading = Reading(
        mode=mode,  # type: ignore[arg-type]
        from_logits=bool(softmax or sigmoid),
        one_vs_rest=index and not exclusive,
        ignore_index=NEVER if ignore_index is None else int(ignore_index),
    )
    return _Read(input, target, reading, mask, drop=drop, channels=channels - drop)


def _mask_of_one_hot(target: Tensor, ignore_index: int) -> Tensor:
    """Pixels of another class than the ignored one (of a soft target, shares of them); for a number that is no class,
    those of any class."""
    if 0 <= ignore_index < target.shape[1]:
        ignored = target[:, ignore_index : ignore_index + 1]
        hard = not ignored.dtype.is_floating_point or bool(((ignored == 0) | (ignored == 1)).all())
        return ignored != 1 if hard else 1 - ignored
    return target.sum(1, keepdim=True) > 0


def _class_weights(self: Any, channels: int) -> tuple[float, ...] | None:
    """The weights of a Dice loss, which a single channel does not use."""
    if self.class_weight is None or channels == 1:
        return None
    if self.class_weight.ndim == 0:
        self.class_weight = torch.as_tensor([self.class_weight] * channels)
    weights: tuple[float, ...] = numbers(self.class_weight)
    if len(weights) != channels:
        raise ValueError(
            "The length of the `weight` sequence should be the same as the number of classes. "
            "If `include_background=False`, the weight should not include the background category class 0."
        )
    if min(weights) < 0:
        raise ValueError("the value/values of the `weight` should be no less than 0.")
    return weights


# ------------------------------------------------------------------------------------------- Dice and relatives


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


# ------------------------------------------------------------------------------------------- focal


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


# ------------------------------------------------------------------------------------------- Tversky, MCC


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


# ------------------------------------------------------------------------------------------- sums of two


def _check_pair(input: Tensor, target: Tensor) -> None:
    if input.dim() != target.dim():
        raise ValueError(
            "the number of dimensions for input and target should be the same, "
            f"got shape {input.shape} (nb dims: {len(input.shape)}) and {target.shape} (nb dims: {len(target.shape)}). "
            "if target is not one-hot encoded, please provide a tensor with shape B1H[WD]."
        )
    if target.shape[1] not in (1, input.shape[1]):
        raise ValueError(
            "number of channels for target is neither 1 (without one-hot encoding) nor the same as input, "
            f"got shape {input.shape} and {target.shape}."
        )


def _check_lambda(**factors: float) -> None:
    for name, factor in factors.items():
        if factor < 0:
            raise ValueError(f"{name} should be no less than 0.0.")


def _known(loss: Any, name: str) -> bool:
    """Not a loss that somebody put in the place of a term."""
    cls = type(loss)
    return cls.__name__ == name and cls.__module__.startswith(("segfuse.compat.", "monai."))


class DiceCELoss(Explained, _Loss):
    """``monai.losses.DiceCELoss``: one pass for both."""

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
        weight: Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        reduction = _option("reduction", reduction, ("mean", "sum"))
        weight = weight if weight is None or isinstance(weight, Tensor) else torch.tensor(weight)
        self.dice = DiceLoss(
            include_background=include_background,
            to_onehot_y=to_onehot_y,
            sigmoid=sigmoid,
            softmax=softmax,
            other_act=other_act,
            squared_pred=squared_pred,
            jaccard=jaccard,
            reduction=reduction,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            batch=batch,
            weight=weight[1:] if weight is not None and not include_background else weight,
        )
        self.cross_entropy = nn.CrossEntropyLoss(weight=weight, reduction=reduction, label_smoothing=label_smoothing)
        self.binary_cross_entropy = nn.BCEWithLogitsLoss(pos_weight=weight, reduction=reduction)
        _check_lambda(lambda_dice=lambda_dice, lambda_ce=lambda_ce)
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce

    def ce(self, input: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy alone, of several classes."""
        return total((1.0, *_ce_part(self, input, target)))

    def bce(self, input: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy alone, of one channel."""
        return total((1.0, *_bce_part(self, input, target)))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        _check_pair(input, target)
        input, target = bare(input), bare(target)
        if not _known(self.dice, "DiceLoss"):
            entropy = self.ce(input, target) if input.shape[1] != 1 else self.bce(input, target)
            return self.lambda_dice * self.dice(input, target) + self.lambda_ce * entropy
        dice = _absolute(_read(self.dice, input, target), self.dice.soft_label)
        part = (_ce_part if input.shape[1] != 1 else _bce_part)(self, input, target)
        return total((self.lambda_dice, dice, _dice_term(self.dice, dice)), (self.lambda_ce, *part))


def _ce_part(self: Any, input: Tensor, target: Tensor) -> tuple[Call, Term]:
    loss = self.cross_entropy
    term = Term(
        cross_entropy,
        weight=numbers(loss.weight),
        smoothing=float(loss.label_smoothing),
        reduction=loss.reduction,
        dense=target.shape == input.shape,
    )
    return Call(input, target, Reading("multiclass")), term


def _bce_part(self: Any, input: Tensor, target: Tensor) -> tuple[Call, Term]:
    loss = self.binary_cross_entropy
    weight = numbers(loss.pos_weight)
    weight = weight[0] if isinstance(weight, tuple) and len(weight) == 1 else weight
    call = Call(input, target, Reading("binary" if input.shape[1] == 1 else "multilabel"))
    return call, Term(binary_cross_entropy, pos_weight=weight, reduction=loss.reduction)


def _region_and_focal(
    self: Any,
    region: Any,
    name: str,
    term: Callable[[Any, _Read], Term],
    alone: Callable[[Any, _Read], Tensor],
    factor: float,
    input: Tensor,
    target: Tensor,
) -> Tensor:
    """A region loss plus ``self.focal``, in one pass where both read the logits alike."""
    _check_pair(input, target)
    input, target = bare(input), bare(target)
    index = bool(getattr(self, "to_onehot_y", region.to_onehot_y))
    if index and input.shape[1] == 1:
        _ignored("to_onehot_y=True")
        index = False
    if not (_known(self.focal, "FocalLoss") and _known(region, name)):
        if index:
            target = one_hot(target.squeeze(1).long(), input.shape[1]).to(input.dtype)
        found: Tensor = factor * region(input, target) + self.lambda_focal * self.focal(input, target)
        return found
    first = _absolute(_read(region, input, target, to_onehot_y=index), region.soft_label)
    second = _focal_read(self.focal, input, target, to_onehot_y=index)
    parts = _focal_parts(self.focal, second, _focal_settings(self.focal, second))
    if parts is not None and region.reduction != "none":
        with suppress(SoftTarget):
            return total((factor, first, term(region, first)), (self.lambda_focal, *parts))
    return factor * alone(region, first) + self.lambda_focal * _focal_loss(self.focal, second)


class DiceFocalLoss(Explained, _Loss):
    """``monai.losses.DiceFocalLoss``; ``softmax`` is for Dice alone, the focal term takes a sigmoid."""

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
        gamma: float = 2.0,
        weight: Weight = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        self.dice = DiceLoss(
            include_background=include_background,
            to_onehot_y=False,
            sigmoid=sigmoid,
            softmax=softmax,
            other_act=other_act,
            squared_pred=squared_pred,
            jaccard=jaccard,
            reduction=reduction,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            batch=batch,
            weight=weight,
        )
        self.focal = FocalLoss(
            include_background=include_background, gamma=gamma, weight=weight, alpha=alpha, reduction=reduction
        )
        _check_lambda(lambda_dice=lambda_dice, lambda_focal=lambda_focal)
        self.lambda_dice = lambda_dice
        self.lambda_focal = lambda_focal
        self.to_onehot_y = to_onehot_y

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _region_and_focal(self, self.dice, "DiceLoss", _dice_term, _dice_loss, self.lambda_dice, input, target)


class GeneralizedDiceFocalLoss(Explained, _Loss):
    """``monai.losses.GeneralizedDiceFocalLoss``."""

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
        gamma: float = 2.0,
        weight: Weight = None,
        lambda_gdl: float = 1.0,
        lambda_focal: float = 1.0,
    ) -> None:
        super().__init__()
        self.generalized_dice = GeneralizedDiceLoss(
            include_background=include_background,
            to_onehot_y=to_onehot_y,
            sigmoid=sigmoid,
            softmax=softmax,
            other_act=other_act,
            w_type=w_type,
            reduction=reduction,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            batch=batch,
        )
        self.focal = FocalLoss(
            include_background=include_background,
            to_onehot_y=to_onehot_y,
            gamma=gamma,
            weight=weight,
            reduction=reduction,
        )
        _check_lambda(lambda_gdl=lambda_gdl, lambda_focal=lambda_focal)
        self.lambda_gdl = lambda_gdl
        self.lambda_focal = lambda_focal

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _region_and_focal(
            self,
            self.generalized_dice,
            "GeneralizedDiceLoss",
            _generalized_dice_term,
            _generalized_dice_loss,
            self.lambda_gdl,
            input,
            target,
        )


# ------------------------------------------------------------------------------------------- distances


class _OneVsRest:
    """A loss of this library that reads class numbers as one sigmoid, or one probability, per class."""

    per_channel = False

    @property
    def one_vs_rest(self) -> bool:
        return self.per_channel


class _DistanceTransform(_OneVsRest, _HausdorffDT):
    pass


class _SignedDistance(_OneVsRest, _Boundary):
    pass


@lru_cache(maxsize=64)
def _distance_loss(kind: type, reading: Reading, background: bool, options: tuple[tuple[str, float], ...]) -> Any:
    loss = kind(
        mode=reading.mode,
        from_logits=reading.from_logits,
        ignore_index=reading.ignore_index,
        include_background=background,
        reduction="none",
        **dict(options),
    )
    loss.per_channel = reading.one_vs_rest
    return loss


def _by_distance(kind: type, call: _Read, by_torch: Callable[[Tensor, Tensor], Tensor], **options: float) -> Tensor:
    """The mean over the pixels of every (sample, class) of a distance loss, ``(N, C)``."""
    plain = call.plain()
    reason = by_torch_because(plain.input, plain.target)
    if reason is None:
        loss = _distance_loss(kind, call.reading, not call.drop, tuple(options.items()))
        try:
            found: Tensor = loss(plain.input, plain.target)
        except ValueError:
            reason = "a soft target"
        else:
            record(loss, plain)
            return found
    record(reason)
    sums = Sums(plain)
    return by_torch(sums.p[:, int(call.drop) :], sums.y[:, int(call.drop) :])


def _check_space(input: Tensor, text: str) -> None:
    if input.dim() not in (4, 5):
        raise ValueError(f"{text}; got an input of shape {tuple(input.shape)}")


def _field(p: Tensor, alpha: float) -> Tensor:
    d = distance_transform_edt(p.detach() > 0.5, mode="two_sided", spatial_dims=p.ndim - 2)
    return d**alpha


class HausdorffDTLoss(_Segmentation):
    """``monai.losses.HausdorffDTLoss``."""

    def __init__(
        self,
        alpha: float = 2.0,
        include_background: bool = False,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        reduction: str = "mean",
        batch: bool = False,
    ) -> None:
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction)
        self.alpha = alpha
        self.batch = batch

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _hausdorff(self, input, target)


def _hausdorff(self: Any, input: Tensor, target: Tensor) -> Tensor:
    _check_space(input, "Only 2D (NCHW) and 3D (NCHWD) supported")
    call, alpha = _read(self, input, target), float(self.alpha)

    def by_torch(p: Tensor, y: Tensor) -> Tensor:
        return ((p - y) ** 2 * (_field(p, alpha) + _field(y, alpha))).flatten(2).mean(2)

    f = _by_distance(_DistanceTransform, call, by_torch, alpha=alpha)
    f = f.mean(0, keepdim=True) if self.batch else f
    return call.shaped(f) if self.reduction == "none" else _finish(f, _reduction(self.reduction))


class LogHausdorffDTLoss(HausdorffDTLoss):
    """``monai.losses.LogHausdorffDTLoss``: ``log(1 + loss)``."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return torch.log(_hausdorff(self, input, target) + 1)


class BoundaryLoss(_Segmentation):
    """``monai.losses.BoundaryLoss``."""

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        reduction: str = "mean",
        batch: bool = False,
    ) -> None:
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction)
        self.batch = batch

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        _check_space(input, "Only 2D (BNHW) and 3D (BNHWD) supported")
        if self.to_onehot_y and input.shape[1] != 1 and target.dim() == input.dim() - 1:
            target = target.unsqueeze(1)
        call = _read(self, input, target)

        def by_torch(p: Tensor, y: Tensor) -> Tensor:
            inside = y.detach() > 0.5
            d = distance_transform_edt(inside, mode="signed", spatial_dims=p.ndim - 2)
            flat = inside.flatten(2)
            boundary = (flat.any(2) & ~flat.all(2)).reshape(*inside.shape[:2], *[1] * (inside.ndim - 2))
            d = torch.where(boundary, torch.where(inside, d + 1, d), 0)
            return (p * d).flatten(2).mean(2)

        f = _by_distance(_SignedDistance, call, by_torch)
        return _finish(f.mean(0) if self.batch else f, _reduction(self.reduction))


# ------------------------------------------------------------------------------------------- unified focal


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


# ------------------------------------------------------------------------------------------- skeletons


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


# ------------------------------------------------------------------------------------------- windows


class NACLLoss(Explained, _Loss):
    """``monai.losses.NACLLoss``: cross-entropy, and logits near the class shares of the neighbourhood."""

    def __init__(
        self,
        classes: int,
        dim: int,
        kernel_size: int = 3,
        kernel_ops: str = "mean",
        distance_type: str = "l1",
        alpha: float = 0.1,
        sigma: float = 1.0,
    ) -> None:
        super().__init__()
        if kernel_ops not in ("mean", "gaussian"):
            raise ValueError("Kernel ops must be either mean or gaussian")
        if dim not in (2, 3):
            raise ValueError(f"Support 2d and 3d, got dim={dim}.")
        if distance_type not in ("l1", "l2"):
            raise ValueError(f"Distance type must be either L1 or L2, got {distance_type}")
        self.nc = classes
        self.dim = dim
        self.cross_entropy = nn.CrossEntropyLoss()
        self.distance_type = distance_type
        self.alpha = alpha
        self.ks = kernel_size
        self.kernel_ops, self.sigma = kernel_ops, sigma

    def get_constr_target(self, mask: Tensor) -> Tensor:
        """Shares of the classes around every pixel, ``(N, C, *spatial)``."""
        hot = one_hot(mask.long(), self.nc).float()
        if self.kernel_ops == "mean":
            weights = torch.full((self.ks,), 1 / self.ks)
        else:
            weights = _integrated_gaussian(float(self.sigma))
        return _filter(hot, weights)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        inputs, targets = floating(bare(inputs)), bare(targets)
        weight = numbers(self.cross_entropy.weight)
        entropy = value(Call(inputs, targets, Reading("multiclass", ignore_index=-100)), cross_entropy, weight=weight)
        away = self.get_constr_target(targets) - inputs
        return entropy + self.alpha * (away.abs() if self.distance_type == "l1" else away**2).mean()


def _integrated_gaussian(sigma: float, cut: float = 4.0) -> Tensor:
    """A Gaussian over the width of every pixel, up to ``cut`` standard deviations; not normalised."""
    radius = int(max(sigma * cut, 0.5) + 0.5)
    edges = (torch.arange(-radius, radius + 2, dtype=torch.float64) - 0.5) / (sigma * 2**0.5)
    return torch.erf(edges).diff().mul(0.5).clamp(min=0).float()


def _filter(x: Tensor, weights: Tensor) -> Tensor:
    """The same odd window along every spatial axis, with zeros outside the image."""
    axes = x.ndim - 2
    conv: Any = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    channels = x.shape[1]
    for axis in range(axes):
        shape, padding = [1] * axes, [0] * axes
        shape[axis], padding[axis] = len(weights), len(weights) // 2
        kernel = weights.to(x).reshape(1, 1, *shape).expand(channels, 1, *shape)
        x = conv(x, kernel, padding=padding, groups=channels)
    return x


class SSIMLoss(Explained, _Loss):
    """``monai.losses.SSIMLoss``."""

    def __init__(
        self,
        spatial_dims: int,
        data_range: float = 1.0,
        kernel_type: str = "gaussian",
        win_size: int | Sequence[int] = 11,
        kernel_sigma: float | Sequence[float] = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        self.spatial_dims = spatial_dims
        self._data_range = data_range
        self.kernel_type = kernel_type
        self.kernel_size = win_size if isinstance(win_size, Sequence) else (win_size,) * spatial_dims
        self.kernel_sigma = kernel_sigma if isinstance(kernel_sigma, Sequence) else (kernel_sigma,) * spatial_dims
        self.k1 = k1
        self.k2 = k2

    @property
    def data_range(self) -> float:
        return self._data_range

    @data_range.setter
    def data_range(self, value: float) -> None:
        self._data_range = value

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if input.shape != target.shape:
            raise ValueError(f"y_pred and y should have same shapes, got {input.shape} and {target.shape}.")
        if input.ndim - 2 != self.spatial_dims:
            raise ValueError(
                f"input should have {self.spatial_dims + 2} dimensions (batch, channel, {self.spatial_dims} spatial "
                f"axes); got {input.ndim}"
            )
        return _finish(_ssim_loss(self, bare(input).float(), bare(target).float()), _reduction(self.reduction))


def _ssim_loss(self: Any, input: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM of every sample, ``(N, 1)``."""
    uniform = str(getattr(self.kernel_type, "value", self.kernel_type)) == "uniform"
    window: dict[str, Any] = {
        "window": tuple(self.kernel_size),
        "sigma": tuple(float(v) for v in self.kernel_sigma),
        "kernel": "box" if uniform else "gaussian",
        "padding": "valid",
    }
    if by_torch_because(input, target) is None:
        loss = _ssim(tuple(window.items()), float(self._data_range), self.k1, self.k2)
        with suppress(ValueError):  # a target beyond 0 to 1
            per_channel: Tensor = loss(input, target)
            record(loss, Call(input, target, Reading("multilabel")))
            return per_channel.mean(1, keepdim=True)
    record("local_moments of two images")
    m = local_moments(input, target, **window)
    assert m.mean_b is not None and m.var_b is not None and m.cov is not None
    c1, c2 = ((k * self._data_range) ** 2 for k in (self.k1, self.k2))
    similarity = ((2 * m.mean_a * m.mean_b + c1) / (m.mean_a**2 + m.mean_b**2 + c1)) * (
        (2 * m.cov + c2) / (m.var_a + m.var_b + c2)
    )
    return 1 - similarity.flatten(1).mean(1, keepdim=True)


@lru_cache(maxsize=32)
def _ssim(window: tuple[tuple[str, Any], ...], data_range: float, k1: float, k2: float) -> _SSIM:
    return _SSIM(
        mode="multilabel",
        from_logits=False,
        reduction="none",
        ignore_index=NEVER,
        data_range=data_range,
        k1=k1,
        k2=k2,
        **dict(window),
    )


_WINDOWS = {
    "rectangular": lambda n: torch.ones(n),
    "triangular": lambda n: _triangle(n),
    "gaussian": lambda n: torch.exp(-0.5 * (torch.arange(-(n // 2), n // 2 + 1) / (n / 3)) ** 2),
}


def _triangle(size: int) -> Tensor:
    """A box with itself: of half the length, rounded up to an odd number, with zeros up to ``size``."""
    half = (size + 1) // 2
    half -= half % 2 == 0
    box = torch.ones((1, 1, half)) / half
    return F.conv1d(box, box, padding=(size - half) // 2 + half // 2).reshape(-1)


class LocalNormalizedCrossCorrelationLoss(Explained, _Loss):
    """``monai.losses.LocalNormalizedCrossCorrelationLoss``, in torch operations."""

    kernel: Tensor
    kernel_vol: Tensor

    def __init__(
        self,
        spatial_dims: int = 3,
        kernel_size: int = 3,
        kernel_type: str = "rectangular",
        reduction: str = "mean",
        smooth_nr: float = 0.0,
        smooth_dr: float = 1e-5,
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        self.ndim = spatial_dims
        if self.ndim not in (1, 2, 3):
            raise ValueError(f"Unsupported ndim: {self.ndim}-d, only 1-d, 2-d, and 3-d inputs are supported")
        self.kernel_size = kernel_size
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        weights = _WINDOWS[_option("kernel_type", kernel_type, tuple(_WINDOWS))](kernel_size)
        self.register_buffer("kernel", weights, persistent=False)
        self.register_buffer("kernel_vol", weights.sum() ** spatial_dims, persistent=False)
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        pred, target = bare(pred), bare(target)
        if pred.ndim - 2 != self.ndim:
            raise ValueError(f"expecting pred with {self.ndim} spatial dimensions, got pred of shape {pred.shape}")
        if target.shape != pred.shape:
            raise ValueError(f"ground truth has differing shape ({target.shape}) from pred ({pred.shape})")
        target = target.to(pred.dtype)
        sums = (_filter(x, self.kernel) for x in (target, pred, target * target, pred * pred, target * pred))
        t, p, tt, pp, tp = sums
        size = self.kernel_vol.to(pred)
        cross = tp - p * t / size
        variances = ((square - mean * mean / size).clamp(min=self.smooth_dr) for square, mean in ((tt, t), (pp, p)))
        t_var, p_var = variances
        return -_finish((cross * cross + self.smooth_nr) / (t_var * p_var), _reduction(self.reduction))


# ------------------------------------------------------------------------------------------- wrappers


class DeepSupervisionLoss(Explained, _Loss):
    """``monai.losses.DeepSupervisionLoss``: one target for a list of outputs, resized to each."""

    def __init__(self, loss: _Loss, weight_mode: str = "exp", weights: list[float] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.weight_mode = weight_mode
        self.weights = weights
        self.interp_mode = "nearest-exact"

    def get_weights(self, levels: int = 1) -> list[float]:
        """One for each output."""
        levels = max(1, levels)
        if self.weights is not None and len(self.weights) >= levels:
            return self.weights[:levels]
        of = {"exp": lambda level: max(0.5**level, 0.0625), "two": lambda level: 0.5 if level else 1.0}
        return [of.get(self.weight_mode, lambda level: 1.0)(level) for level in range(levels)]

    def get_loss(self, input: Tensor, target: Tensor) -> Tensor:
        """Of one output."""
        if input.shape[2:] != target.shape[2:]:
            target = nearest(target, input.shape[2:], exact=self.interp_mode == "nearest-exact")
        loss: Tensor = self.loss(input, target)
        return loss

    def forward(self, input: Tensor | list[Tensor] | None, target: Tensor) -> Tensor:
        if isinstance(input, list | tuple):
            weights = self.get_weights(levels=len(input))
            value = torch.tensor(0.0, device=target.device)
            for weight, x in zip(weights, input, strict=True):
                value = value + weight * DeepSupervisionLoss.get_loss(self, x.float(), target)
            return value
        if input is None:
            raise ValueError("input shouldn't be None.")
        loss: Tensor = self.loss(input.float(), target)
        return loss


class MaskedLoss(Explained, _Loss):
    """``monai.losses.MaskedLoss``: prediction and target times a mask, before the loss."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor] | _Loss, *loss_args: Any, **loss_kwargs: Any) -> None:
        super().__init__()
        self.loss: Any = loss(*loss_args, **loss_kwargs) if inspect.isclass(loss) else loss
        if not callable(self.loss):
            raise ValueError("The loss function is not callable.")

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            warn("No mask value specified for the MaskedLoss.")
            return self.loss(input, target)
        _check_mask(input, target, mask)
        return self.loss(input * mask, target * mask)


def _smoothing_gaussian(sigma: float) -> Tensor:
    """Sampled at the pixels within three standard deviations; not normalised to their sum."""
    radius = int(max(sigma * 3, 0.5) + 0.5)
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    return torch.exp(-0.5 * (x / sigma) ** 2) / (sigma * (2 * math.pi) ** 0.5)


def _smoothing_cauchy(sigma: float) -> Tensor:
    radius = int(sigma * 5)
    k = 1 / ((torch.arange(-radius, radius + 1, dtype=torch.float32) / sigma) ** 2 + 1)
    return k / k.sum()


_SMOOTHINGS = {"gaussian": _smoothing_gaussian, "cauchy": _smoothing_cauchy}


class MultiScaleLoss(Explained, _Loss):
    """``monai.losses.MultiScaleLoss``: a loss of two images smoothed at several scales."""

    def __init__(
        self, loss: _Loss, scales: list[float] | None = None, kernel: str = "gaussian", reduction: str = "mean"
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        if kernel not in _SMOOTHINGS:
            raise ValueError(f"got unsupported kernel type: {kernel}", "only support gaussian and cauchy")
        self.kernel_fn = _SMOOTHINGS[kernel]
        self.loss = loss
        self.scales = scales

    def forward(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if self.scales is None:
            return _finish(self.loss(y_pred, y_true), _reduction(self.reduction))
        found = []
        for scale in self.scales:
            if scale < 0:
                raise ValueError(f"expecting positive sigma, got sigma={scale}")
            if scale == 0:
                found.append(self.loss(y_pred, y_true))
                continue
            weights = self.kernel_fn(scale)
            found.append(self.loss(_filter(y_pred, weights), _filter(y_true, weights)))
        return _finish(torch.stack(found), _reduction(self.reduction))


Dice = DiceLoss
dice_ce = DiceCELoss
dice_focal = DiceFocalLoss
generalized_dice = GeneralizedDiceLoss
generalized_dice_focal = GeneralizedDiceFocalLoss
generalized_wasserstein_dice = GeneralizedWassersteinDiceLoss
ds_loss = DeepSupervisionLoss
