"""Dice or generalized Dice plus cross-entropy or focal: one pass where both read the logits alike."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from .._adapter import (
    Call,
    Explained,
    Reading,
    SoftTarget,
    Term,
    bare,
    binary_cross_entropy,
    cross_entropy,
    numbers,
    one_hot,
    total,
)
from ._reading import Weight, _ignored, _Read, _read
from .dice import (
    DiceLoss,
    GeneralizedDiceLoss,
    _absolute,
    _dice_loss,
    _dice_term,
    _generalized_dice_loss,
    _generalized_dice_term,
    _option,
)
from .focal import FocalLoss, _focal_loss, _focal_parts, _focal_read, _focal_settings


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
