"""``kornia.losses``: the segmentation losses of kornia 0.9."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses.hausdorff import HausdorffERLoss as _Erosion
from ..ops.formula import Array, PixelStats, where
from ..ops.local_moments import local_moments
from ..ops.lovasz_extension import lovasz_extension
from ..ops.pixel_stats import NEVER
from ._adapter import (
    Call,
    Explained,
    Reading,
    Term,
    bare,
    by_torch_because,
    floating,
    numbers,
    one_hot,
    pixel_map,
    record,
    total,
    value,
)

__all__ = [
    "BinaryFocalLossWithLogits",
    "DiceLoss",
    "FocalLoss",
    "HausdorffERLoss",
    "HausdorffERLoss3D",
    "LovaszHingeLoss",
    "LovaszSoftmaxLoss",
    "MS_SSIMLoss",
    "SSIM3DLoss",
    "SSIMLoss",
    "TverskyLoss",
    "binary_focal_loss_with_logits",
    "dice_loss",
    "focal_loss",
    "lovasz_hinge_loss",
    "lovasz_softmax_loss",
    "ssim3d_loss",
    "ssim_loss",
    "tversky_loss",
]


# ------------------------------------------------------------------------------------------- how kornia reads a call


def _check(pred: Tensor, target: Tensor, images: bool = True) -> tuple[Tensor, Tensor]:
    if not isinstance(pred, Tensor):
        raise TypeError(f"pred type is not a torch.Tensor. Got {type(pred)}")
    if images and pred.ndim != 4:
        raise ValueError(f"Invalid pred shape, we expect BxNxHxW. Got: {pred.shape}")
    if pred.device != target.device:
        raise ValueError(f"pred and target must be in the same device. Got: {pred.device} and {target.device}")
    size = (pred.shape[0], *pred.shape[2:])
    if target.shape != size:
        raise ValueError(f"Expected target size {torch.Size(size)}, got {target.shape}. Try: target.squeeze(1)")
    return floating(bare(pred)), bare(target)


def _weights(name: str, weight: Tensor | None, pred: Tensor) -> tuple[float, ...] | None:
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be torch.Tensor or None. Got {type(weight)}")
    if weight.shape[0] != pred.shape[1] or weight.numel() != pred.shape[1]:
        raise ValueError(
            f"{name} must hold one value per class of pred: got {name} of shape {tuple(weight.shape)} for pred of "
            f"shape {tuple(pred.shape)}"
        )
    found: tuple[float, ...] = numbers(weight)
    return found


def _reading(ignore_index: int | None, mode: Any = "multiclass") -> Reading:
    return Reading(mode, ignore_index=NEVER if ignore_index is None else ignore_index)


def _held(module: nn.Module, **tensors: Tensor | None) -> None:
    """Learnable weights as parameters, others as buffers that are not stored."""
    for name, x in tensors.items():
        if isinstance(x, nn.Parameter):
            setattr(module, name, x)
        else:
            module.register_buffer(name, x, persistent=False)


def _learned(*tensors: Tensor | None) -> bool:
    return any(x is not None and x.requires_grad for x in tensors)


def _softmax_and_target(pred: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """In torch: probabilities, one-hot target (both 0 where ignored), and where a pixel counts."""
    record("one class, or learned weights")
    kept = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    hot = one_hot(torch.where(kept, target, 0).long(), pred.shape[1])
    m = kept.unsqueeze(1)
    dtype = torch.float64 if pred.dtype == torch.float64 else torch.float32
    return pred.softmax(1, dtype=dtype) * m, (hot & m).to(dtype), m


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction not in ("mean", "sum"):
        raise NotImplementedError(f"Invalid reduction mode: {reduction}")
    return loss.mean() if reduction == "mean" else loss.sum()


# ------------------------------------------------------------------------------------------- regions


def _dice(s: PixelStats, average: str, eps: float, weight: tuple[float, ...] | None) -> Array:
    v: Array = 1.0 if weight is None else s.vector(weight)
    overlap, sizes = s.tp, s.pred + s.true
    if average == "micro":
        overlap, sizes = (v * overlap).sum(1, keepdim=True), (v * sizes).sum(1, keepdim=True)
    loss = 1 - where(sizes == 0, 0.0, 2 * overlap / where(sizes == 0, 1.0, sizes + eps))
    if average == "macro":  # over the classes of each sample that have a pixel
        v = where(s.true > 0, v, 0.0)
        norm = v.sum(1, keepdim=True)
        loss = where(norm == 0, 1.0, (v * loss).sum(1, keepdim=True) / where(norm == 0, 1.0, norm))
    return loss.sum() / s.samples


def dice_loss(
    pred: Tensor,
    target: Tensor,
    average: str = "micro",
    eps: float = 1e-8,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """``kornia.losses.dice_loss``: the mean over samples of one ratio (micro) or of their classes' (macro)."""
    pred, target = _check(pred, target)
    if average not in ("micro", "macro"):
        raise ValueError(f"The `average` has to be one of 'micro', 'macro'. Got: {average}")
    weights = _weights("weight", weight, pred)
    if pred.shape[1] > 1 and not _learned(weight):
        return value(Call(pred, target, _reading(ignore_index)), _dice, average=average, eps=float(eps), weight=weights)
    p, y, _ = _softmax_and_target(pred, target, ignore_index)
    v = torch.ones(pred.shape[1]).to(p) if weight is None else weight
    overlap, sizes, present = (p * y).sum((2, 3)), (p + y).sum((2, 3)), y.sum((2, 3)) > 0
    if average == "micro":
        overlap, sizes = (v * overlap).sum(1, keepdim=True), (v * sizes).sum(1, keepdim=True)
    loss = 1 - torch.where(sizes == 0, 0, 2 * overlap / torch.where(sizes == 0, 1, sizes + eps))
    if average == "macro":
        v = v * present
        norm = v.sum(1)
        loss = torch.where(norm == 0, 1, (v * loss).sum(1) / torch.where(norm == 0, 1, norm))
    return loss.mean()


class DiceLoss(Explained, nn.Module):
    """``kornia.losses.DiceLoss``."""

    weight: Tensor | None

    def __init__(
        self,
        average: str = "micro",
        eps: float = 1e-8,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        super().__init__()
        self.average = average
        self.eps = eps
        _held(self, weight=weight)
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return dice_loss(pred, target, self.average, self.eps, self.weight, self.ignore_index)


def _tversky(s: PixelStats, alpha: float, beta: float, eps: float) -> Array:
    present = s.true > 0
    score = s.tp / where(present, s.tp + alpha * s.fp + beta * s.fn + eps, 1.0)
    count = where(present, 1.0, 0.0).sum(1, keepdim=True)
    score = where(present, score, 0.0).sum(1, keepdim=True) / count.clamp(min=1.0)
    return 1 - score.sum() / s.samples


def tversky_loss(
    pred: Tensor, target: Tensor, alpha: float, beta: float, eps: float = 1e-8, ignore_index: int | None = -100
) -> Tensor:
    """``kornia.losses.tversky_loss``: the mean over the classes that each sample has."""
    pred, target = _check(pred, target)
    settings = {"alpha": float(alpha), "beta": float(beta), "eps": float(eps)}
    if pred.shape[1] > 1:
        return value(Call(pred, target, _reading(ignore_index)), _tversky, **settings)
    # one class: the softmax is 1 everywhere, and the gradient 0
    p, y, _ = _softmax_and_target(pred, target, ignore_index)
    call = Call(p, y, Reading("binary", from_logits=False))
    return value(call, _tversky, **settings)


class TverskyLoss(Explained, nn.Module):
    """``kornia.losses.TverskyLoss``."""

    def __init__(self, alpha: float, beta: float, eps: float = 1e-8, ignore_index: int | None = -100) -> None:
        super().__init__()
        self.alpha: float = alpha
        self.beta: float = beta
        self.eps: float = eps
        self.ignore_index: int | None = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return tversky_loss(pred, target, self.alpha, self.beta, self.eps, self.ignore_index)


# ------------------------------------------------------------------------------------------- focal


def _focal(s: PixelStats, gamma: float, weight: tuple[float, ...] | None, reduction: str) -> Array:
    """The mean is over pixels and classes, ignored ones included."""
    loss = s.term("focal", gamma)[0]
    loss = (loss if weight is None else s.vector(weight) * loss).sum()
    return loss / (s.pixels * s.samples * s.geometry.shape[1]) if reduction == "mean" else loss


def focal_loss(
    pred: Tensor,
    target: Tensor,
    alpha: float | None,
    gamma: float = 2.0,
    reduction: str = "none",
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """``kornia.losses.focal_loss``: without a reduction a map ``(B, C, *)`` with values at the target class alone."""
    pred, target = _check(pred, target, images=False)
    if reduction not in ("none", "mean", "sum"):
        raise NotImplementedError(f"Invalid reduction mode: {reduction}")
    classes, weights = pred.shape[1], _weights("weight", weight, pred)
    if classes == 1 or _learned(weight) or (reduction == "none" and by_torch_because(pred, target)):
        return _focal_by_torch(pred, target, alpha, gamma, reduction, weight, ignore_index)
    if alpha is not None:
        each = (1 - alpha, *[alpha] * (classes - 1))
        weights = each if weights is None else tuple(a * w for a, w in zip(each, weights, strict=True))
    call = Call(pred, target, _reading(ignore_index))
    term = Term(_focal, gamma=float(gamma), weight=weights, reduction=reduction)
    if reduction != "none":
        return total((1.0, call, term))
    found = pixel_map(call, term).unsqueeze(1)
    labels = target if ignore_index is None else torch.where(target == ignore_index, 0, target)
    return found.new_zeros(pred.shape).scatter(1, labels.long().unsqueeze(1), found)


def _focal_by_torch(
    pred: Tensor,
    target: Tensor,
    alpha: float | None,
    gamma: float,
    reduction: str,
    weight: Tensor | None,
    ignore_index: int | None,
) -> Tensor:
    _, y, _ = _softmax_and_target(pred, target, ignore_index)
    log_p = pred.log_softmax(1)
    loss = torch.where(y > 0, -((1 - log_p.exp()) ** gamma) * log_p, 0)
    shape = (1, -1, *[1] * (pred.ndim - 2))
    if alpha is not None:
        loss = loss * loss.new_tensor([1 - alpha, *[alpha] * (pred.shape[1] - 1)]).reshape(shape)
    return _reduced(loss if weight is None else loss * weight.reshape(shape), reduction)


class FocalLoss(Explained, nn.Module):
    """``kornia.losses.FocalLoss``."""

    weight: Tensor | None

    def __init__(
        self,
        alpha: float | None,
        gamma: float = 2.0,
        reduction: str = "none",
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        super().__init__()
        self.alpha: float | None = alpha
        self.gamma: float = gamma
        self.reduction: str = reduction
        _held(self, weight=weight)
        self.ignore_index: int | None = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return focal_loss(pred, target, self.alpha, self.gamma, self.reduction, self.weight, self.ignore_index)


def _binary_focal(
    s: PixelStats,
    gamma: float,
    alpha: float | None,
    pos_weight: tuple[float, ...] | None,
    weight: tuple[float, ...] | None,
    reduction: str,
) -> Array:
    one, zero = s.term("focal", gamma)
    one = one if pos_weight is None else s.vector(pos_weight) * one
    loss = one + zero if alpha is None else alpha * one + (1 - alpha) * zero
    loss = (loss if weight is None else s.vector(weight) * loss).sum()
    return loss / (s.pixels * s.samples * s.geometry.shape[1]) if reduction == "mean" else loss


def binary_focal_loss_with_logits(
    pred: Tensor,
    target: Tensor,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    pos_weight: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """``kornia.losses.binary_focal_loss_with_logits``: of every element; a soft target shares it between both terms."""
    if not isinstance(pred, Tensor):
        raise TypeError(f"pred type is not a torch.Tensor. Got {type(pred)}")
    if reduction not in ("none", "mean", "sum"):
        raise NotImplementedError(f"Invalid reduction mode: {reduction}")
    pred, target = floating(bare(pred)), bare(target)
    if pred.shape != target.shape or pred.ndim < 2:
        raise ValueError(f"Expected target size {pred.shape} of at least two axes, got {target.shape}")
    weights: dict[str, Any] = {
        name: _weights(name, w, pred) for name, w in (("pos_weight", pos_weight), ("weight", weight))
    }
    if not _learned(pos_weight, weight) and not (reduction == "none" and by_torch_because(pred, target)):
        call = Call(pred, target, _reading(ignore_index, "binary" if pred.shape[1] == 1 else "multilabel"))
        share = None if alpha is None else float(alpha)
        term = Term(_binary_focal, gamma=float(gamma), alpha=share, reduction=reduction, **weights)
        if reduction != "none":
            return total((1.0, call, term))
        try:
            return pixel_map(call, term)
        except ValueError:
            pass
    record("learned weights, or a target beyond 0 to 1")
    shape = (1, -1, *[1] * (pred.ndim - 2))
    y = target.to(pred.dtype)
    one, zero = F.logsigmoid(pred), F.logsigmoid(-pred)  # log p, log (1 - p)
    first, second = -(torch.exp(gamma * zero)) * y * one, -torch.exp(gamma * one) * (1 - y) * zero
    first = first if pos_weight is None else first * pos_weight.reshape(shape)
    loss = first + second if alpha is None else alpha * first + (1 - alpha) * second
    loss = loss if weight is None else loss * weight.reshape(shape)
    return _reduced(loss if ignore_index is None else torch.where(target == ignore_index, 0, loss), reduction)


class BinaryFocalLossWithLogits(Explained, nn.Module):
    """``kornia.losses.BinaryFocalLossWithLogits``."""

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        alpha: float | None,
        gamma: float = 2.0,
        reduction: str = "none",
        pos_weight: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        super().__init__()
        self.alpha: float | None = alpha
        self.gamma: float = gamma
        self.reduction: str = reduction
        _held(self, pos_weight=pos_weight, weight=weight)
        self.ignore_index: int | None = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return binary_focal_loss_with_logits(
            pred, target, self.alpha, self.gamma, self.reduction, self.pos_weight, self.weight, self.ignore_index
        )


# ------------------------------------------------------------------------------------------- Lovasz


def _as(x: Tensor, pred: Tensor) -> Tensor:
    record("lovasz_extension")
    return x.to(torch.float64 if pred.dtype == torch.float64 else torch.float32)


def lovasz_hinge_loss(pred: Tensor, target: Tensor) -> Tensor:
    """``kornia.losses.lovasz_hinge_loss``: of each image, then the mean."""
    if pred.ndim != 4 or pred.shape[1] != 1:
        raise ValueError(f"pred must have shape (B, 1, H, W). Got {tuple(pred.shape)}")
    pred, target = _check(pred, target)
    losses = lovasz_extension(pred, target, mode="binary", per_image=True, ignore_index=NEVER)
    return _as(losses.mean(), pred)


class LovaszHingeLoss(Explained, nn.Module):
    """``kornia.losses.LovaszHingeLoss``."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return lovasz_hinge_loss(pred=pred, target=target)


def lovasz_softmax_loss(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """``kornia.losses.lovasz_softmax_loss``: of each image, over all classes, absent ones included."""
    if pred.ndim != 4 or pred.shape[1] < 2:
        raise ValueError(f"Invalid pred shape, we expect BxNxHxW, with N > 1. Got: {tuple(pred.shape)}")
    if len(pred) == 1 and target.ndim == 3 and len(target) > 1:  # one prediction against every target
        pred = pred.expand(len(target), *pred.shape[1:])
    pred, target = _check(pred, target)
    _weights("weight", weight, pred)
    losses = lovasz_extension(pred, target, mode="multiclass", per_image=True, classes="all", ignore_index=NEVER)
    losses = losses.mean(0)
    return _as((losses if weight is None else losses * weight).mean(), pred)


class LovaszSoftmaxLoss(Explained, nn.Module):
    """``kornia.losses.LovaszSoftmaxLoss``."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        _held(self, weight=weight)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return lovasz_softmax_loss(pred=pred, target=target, weight=self.weight)


# ------------------------------------------------------------------------------------------- Hausdorff by erosion


class _ErosionByClass(_Erosion):
    @property
    def one_vs_rest(self) -> bool:
        return True


@lru_cache(maxsize=32)
def _erosion(alpha: float, k: int, mode: Any) -> _Erosion:
    return _ErosionByClass(
        alpha=alpha,
        erosions=k,
        mode=mode,
        from_logits=False,
        reduction="none",
        include_background=True,
        ignore_index=NEVER,
    )


def _hausdorff(self: Any, pred: Tensor, target: Tensor, axes: int) -> Tensor:
    if pred.dim() != axes + 2:
        raise ValueError(f"Only {axes}D images supported. Got {pred.dim()}.")
    pred, target = bare(pred), bare(target)
    if pred.shape[2:] != target.shape[2:] or len(pred) != len(target) or target.shape[1] != 1:
        raise ValueError(
            "Prediction and target need to be of same size, and target should not be one-hot."
            f"Got {pred.shape} and {target.shape}."
        )
    classes = pred.shape[1]
    if target.dtype != torch.long:
        raise ValueError(f"Expect long type target value in range [0, {classes}). Got {target.dtype}.")
    if self.reduction not in ("none", "mean", "sum"):
        raise NotImplementedError(f"reduction `{self.reduction}` has not been implemented yet.")
    eager = by_torch_because(pred, target) is None
    if eager and target.numel() and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise ValueError(f"Expect long type target value in range [0, {classes}). ({target.min()}, {target.max()})")
    if self.reduction != "none" and eager and 1 <= self.k <= 1000 and abs(self.alpha) <= 16:
        one = classes == 1
        loss = _erosion(float(self.alpha), int(self.k), "binary" if one else "multiclass")
        found: Tensor = loss(pred, (target == 0).long() if one else target)
        record(loss, Call(pred, target, Reading("multiclass")))
        return found.mean() if self.reduction == "mean" else found.sum() * pred[0, 0].numel()
    record("the maps of every erosion")
    hot = one_hot(target.squeeze(1), classes).to(pred.dtype)
    conv: Any = F.conv2d if axes == 2 else F.conv3d
    kernel = self.kernel.to(pred).expand(classes, *self.kernel.shape[1:])
    spatial = tuple(range(2, axes + 2))
    bound, eroded = (pred - hot) ** 2, torch.zeros_like(pred)
    for k in range(self.k):
        average = conv(bound, kernel, padding=1, groups=classes)
        bound = torch.where(average < 0.5, 0, average - 0.5)
        low, high = bound.amin(spatial, keepdim=True), bound.amax(spatial, keepdim=True)
        span = high - low
        bound = torch.where(span == 0, bound, (bound - low) / torch.where(span == 0, 1, span))
        eroded = eroded + bound * (k + 1) ** self.alpha
    return _reduced(eroded.transpose(0, 1).unsqueeze(2), self.reduction)


def _cross(axes: int) -> Tensor:
    """The average of a pixel and its face neighbours, as a kernel."""
    shape = (3,) * axes
    offsets = torch.stack(torch.meshgrid(*[torch.arange(-1, 2)] * axes, indexing="ij")).abs().sum(0)
    return ((offsets <= 1).reshape(1, 1, *shape)) / (2 * axes + 1)


class HausdorffERLoss(Explained, nn.Module):
    """``kornia.losses.HausdorffERLoss``, of probabilities."""

    kernel: Tensor

    def __init__(self, alpha: float = 2.0, k: int = 10, reduction: str = "mean") -> None:
        super().__init__()
        self.alpha = alpha
        self.k = k
        self.reduction = reduction
        self.register_buffer("kernel", _cross(2))

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return _hausdorff(self, pred, target, 2)


class HausdorffERLoss3D(Explained, nn.Module):
    """``kornia.losses.HausdorffERLoss3D``, of probabilities."""

    kernel: Tensor

    def __init__(self, alpha: float = 2.0, k: int = 10, reduction: str = "mean") -> None:
        super().__init__()
        self.alpha = alpha
        self.k = k
        self.reduction = reduction
        self.register_buffer("kernel", _cross(3))

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return _hausdorff(self, pred, target, 3)


# ------------------------------------------------------------------------------------------- structural similarity


def _ssim_loss(
    img1: Tensor, img2: Tensor, window_size: int, max_val: float, eps: float, reduction: str, padding: str, axes: int
) -> Tensor:
    for name, x in (("img1", img1), ("img2", img2)):
        if not isinstance(x, Tensor):
            raise TypeError(f"Input {name} type is not a torch.Tensor. Got {type(x)}")
        if x.ndim != axes + 2:
            raise ValueError(f"Invalid {name} shape, we expect BxC and {axes} axes. Got: {x.shape}")
    if not isinstance(max_val, float):
        raise TypeError(f"Input max_val type is not a float. Got {type(max_val)}")
    if img1.shape != img2.shape:
        raise ValueError(f"img1 and img2 shapes must be the same. Got: {img1.shape} and {img2.shape}")
    if window_size % 2 == 0:
        raise ValueError(f"Kernel size must be an odd integer bigger than 0. Got {window_size}. Try: {window_size + 1}")
    if str(padding).lower() not in ("same", "valid"):
        raise ValueError(f"Invalid padding mode, {padding}. Expected one of 'valid', 'same'")
    if reduction not in ("none", "mean", "sum"):
        raise NotImplementedError("Invalid reduction option.")
    a, b = (floating(bare(x)) for x in (img1, img2))
    dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    a, b = a.to(dtype), b.to(dtype)
    if str(padding).lower() == "same":  # mirrored images have a window inside for every pixel
        reach = [window_size // 2] * 2 * axes
        a, b = F.pad(a, reach, mode="reflect"), F.pad(b, reach, mode="reflect")
    record("local_moments")
    m = local_moments(a, b, window=window_size, padding="valid")
    assert m.mean_b is not None and m.var_b is not None and m.cov is not None
    c1, c2 = (0.01 * max_val) ** 2, (0.03 * max_val) ** 2
    top = (2 * m.mean_a * m.mean_b + c1) * (2 * m.cov + c2)
    similarity = top / ((m.mean_a**2 + m.mean_b**2 + c1) * (m.var_a + m.var_b + c2) + eps)
    return _reduced(((1 - similarity) / 2).clamp(0, 1), reduction)


def ssim_loss(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float = 1.0,
    eps: float = 1e-12,
    reduction: str = "mean",
    padding: str = "same",
) -> Tensor:
    """``kornia.losses.ssim_loss``: half of 1 - SSIM, Gaussian windows of sigma 1.5."""
    return _ssim_loss(img1, img2, window_size, max_val, eps, reduction, padding, 2)


class _SSIMLoss(Explained, nn.Module):
    axes: int

    def __init__(
        self, window_size: int, max_val: float = 1.0, eps: float = 1e-12, reduction: str = "mean", padding: str = "same"
    ) -> None:
        super().__init__()
        self.window_size: int = window_size
        self.max_val: float = max_val
        self.eps: float = eps
        self.reduction: str = reduction
        self.padding: str = padding

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        return _ssim_loss(img1, img2, self.window_size, self.max_val, self.eps, self.reduction, self.padding, self.axes)


class SSIMLoss(_SSIMLoss):
    """``kornia.losses.SSIMLoss``."""

    axes = 2


def ssim3d_loss(
    img1: Tensor,
    img2: Tensor,
    window_size: int,
    max_val: float = 1.0,
    eps: float = 1e-12,
    reduction: str = "mean",
    padding: str = "same",
) -> Tensor:
    """``kornia.losses.ssim3d_loss``."""
    return _ssim_loss(img1, img2, window_size, max_val, eps, reduction, padding, 3)


class SSIM3DLoss(_SSIMLoss):
    """``kornia.losses.SSIM3DLoss``."""

    axes = 3


class MS_SSIMLoss(Explained, nn.Module):
    """``kornia.losses.MS_SSIMLoss``: several sigmas in windows of one size, plus a blurred l1."""

    _g_masks: Tensor

    def __init__(
        self,
        sigmas: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0),
        data_range: float = 1.0,
        K: tuple[float, float] = (0.01, 0.03),
        alpha: float = 0.025,
        compensation: float = 200.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.DR: float = data_range
        self.C1: float = (K[0] * data_range) ** 2
        self.C2: float = (K[1] * data_range) ** 2
        self.pad = int(2 * sigmas[-1])
        self.alpha: float = alpha
        self.compensation: float = compensation
        self.reduction: str = reduction
        self.num_scales: int = len(sigmas)
        x = torch.arange(-self.pad, self.pad + 1, dtype=torch.float32)
        g = torch.exp(-(x**2) / (2 * torch.tensor(sigmas)[:, None] ** 2))
        g = g / g.sum(1, keepdim=True)
        self.register_buffer("_g_masks", torch.einsum("si,sj->sij", g, g).unsqueeze(1), persistent=False)

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        for name, x in (("img1", img1), ("img2", img2)):
            if not isinstance(x, Tensor):
                raise TypeError(f"{name} type is not a torch.Tensor. Got {type(x)}")
            if x.ndim != 4:
                raise ValueError(f"Invalid {name} shape, we expect BxCxHxW. Got: {x.shape}")
        if img1.shape[1:] != img2.shape[1:] or (len(img1) != len(img2) and 1 not in (len(img1), len(img2))):
            raise ValueError(
                "Input and target must have the same shape, except for a batch size of 1. "
                f"Got: {img1.shape} and {img2.shape}."
            )
        if self.reduction not in ("none", "mean", "sum"):
            raise NotImplementedError(f"Invalid reduction mode: {self.reduction}")
        a, b = (floating(bare(x)) for x in (img1, img2))
        dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
        a, b = torch.broadcast_tensors(a.to(dtype), b.to(dtype))
        a, b = a.contiguous(), b.contiguous()
        similarity: Any = 1.0
        last = self.num_scales - 1
        size = 2 * self.pad + 1
        for scale, sigma in enumerate(_sigmas(self._g_masks)):
            m = local_moments(a, b, window=size, sigma=sigma)
            assert m.mean_b is not None and m.var_b is not None and m.cov is not None
            similarity = similarity * (2 * m.cov + self.C2) / (m.var_a + m.var_b + self.C2)
            if scale == last:
                light = (2 * m.mean_a * m.mean_b + self.C1) / (m.mean_a**2 + m.mean_b**2 + self.C1)
                away = F.conv2d(
                    (a - b).abs(),
                    self._g_masks[last:].to(a).expand(a.shape[1], 1, size, size),
                    groups=a.shape[1],
                    padding=self.pad,
                )
        loss = self.alpha * (1 - (light * similarity).mean(1)) + (1 - self.alpha) * away.mean(1) / self.DR
        record("local_moments of every scale")
        return _reduced(self.compensation * loss, self.reduction)


def _sigmas(masks: Any) -> list[float]:
    """Back from the windows: neighbours at the centre have the ratio ``exp(-1 / (2 sigma^2))``."""
    centre = masks.shape[-1] // 2
    rows = masks[:, 0, centre].double()
    return [math.sqrt(-0.5 / math.log(float(r[centre + 1] / r[centre]))) for r in rows]
