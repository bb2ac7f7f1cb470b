"""``segmentation_models_pytorch.losses``: the losses of SMP 0.6."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from ..ops.formula import Array, PixelStats, where
from ..ops.pixel_stats import NEVER
from ._adapter import (
    Call,
    Explained,
    Reading,
    SoftTarget,
    Sums,
    Term,
    bare,
    by_torch_because,
    cross_entropy,
    floating,
    groups,
    numbers,
    pixel_map,
    record,
    total,
    value,
)
from .lovasz import lovasz_hinge, softmax_of

__all__ = [
    "BINARY_MODE",
    "MULTICLASS_MODE",
    "MULTILABEL_MODE",
    "DiceLoss",
    "FocalLoss",
    "JaccardLoss",
    "LovaszLoss",
    "MCCLoss",
    "SoftBCEWithLogitsLoss",
    "SoftCrossEntropyLoss",
    "TverskyLoss",
    "focal_loss_with_logits",
    "label_smoothed_nll_loss",
    "soft_dice_score",
    "soft_jaccard_score",
    "soft_tversky_score",
    "softmax_focal_loss_with_logits",
]

BINARY_MODE: str = "binary"
MULTICLASS_MODE: str = "multiclass"
MULTILABEL_MODE: str = "multilabel"
_MODES = (BINARY_MODE, MULTICLASS_MODE, MULTILABEL_MODE)


# ------------------------------------------------------------------------------------------- how SMP reads a call


def _read(self: Any, y_pred: Tensor, y_true: Tensor, from_logits: bool, one_vs_rest: bool = False) -> Call:
    """Binary: all that is given is one channel. Multiclass: class numbers of any integer type."""
    y_pred, y_true = floating(bare(y_pred)), bare(y_true)
    n = len(y_true)
    if n != len(y_pred):
        raise AssertionError(f"batch sizes differ: y_pred {tuple(y_pred.shape)}, y_true {tuple(y_true.shape)}")
    if self.mode == BINARY_MODE:
        if y_pred.numel() != y_true.numel():
            raise _shapes(self, y_pred, y_true, "y_pred.squeeze(1)")
        if y_pred.shape != y_true.shape or y_pred.ndim < 2 or y_pred.shape[1] != 1:
            y_pred, y_true = y_pred.reshape(n, 1, -1), y_true.reshape(n, 1, -1)
    elif self.mode == MULTICLASS_MODE:
        labels = (n, *y_pred.shape[2:])
        if y_true.numel() * y_pred.shape[1] != y_pred.numel():
            raise _shapes(self, y_pred, y_true, "y_true.argmax(1)")
        y_true = y_true.reshape(labels)
    elif y_pred.shape != y_true.shape:
        if y_pred.numel() != y_true.numel():
            raise _shapes(self, y_pred, y_true, "mode='multiclass' for class numbers")
        y_true = y_true.reshape(y_pred.shape)
    ignore = NEVER if self.ignore_index is None else self.ignore_index
    return Call(y_pred, y_true, Reading(self.mode, from_logits, one_vs_rest, ignore))


def _shapes(self: Any, y_pred: Tensor, y_true: Tensor, fix: str) -> ValueError:
    return ValueError(
        f"y_true of shape {tuple(y_true.shape)} does not fit y_pred of shape {tuple(y_pred.shape)} in mode "
        f"{self.mode!r}. Try: {fix}"
    )


def _long(classes: Any) -> Tensor | None:
    return None if classes is None else torch.as_tensor(classes).long()


def _float(weights: Any) -> Tensor | None:
    return None if weights is None else torch.as_tensor(weights).float()


def _check(mode: str, classes: Any, class_weights: Any) -> None:
    if mode not in _MODES:
        raise AssertionError(f"mode must be one of {', '.join(_MODES)}; got {mode!r}")
    if mode == BINARY_MODE and class_weights is not None:
        raise ValueError("class_weights are not supported with mode=binary")
    if mode == BINARY_MODE and classes is not None:
        raise AssertionError("Masking classes is not supported with mode=binary")


# ------------------------------------------------------------------------------------------- regions


def _overlap(
    s: PixelStats,
    prices: tuple[float, float],
    smooth: float,
    eps: float,
    log: bool,
    weights: tuple[float, ...] | None,
    gamma: float,
) -> Array:
    """Of the whole batch; a class without a pixel has loss 0, and counts in the mean."""
    v = None if weights is None else s.vector(weights)
    s = groups(s, False, True, l1=True)
    wrong = prices[0] * s.fp + prices[1] * s.fn
    score = (s.tp + smooth) / (s.tp + wrong + smooth).clamp(min=eps)
    loss = -score.clamp(min=eps).log() if log else 1 - score
    loss = where(s.true > 0, loss, 0.0)
    mean = loss.sum() / s.geometry.shape[1] if v is None else (v * loss).sum() / v.sum()
    return mean if gamma == 1 else mean**gamma


class _Region(Explained, _Loss):
    def __init__(
        self,
        mode: str,
        classes: Sequence[int] | None,
        log_loss: bool,
        from_logits: bool,
        smooth: float,
        ignore_index: int | None,
        eps: float,
        class_weights: Sequence[float] | None,
    ) -> None:
        _check(mode, classes, class_weights)
        super().__init__()
        self.mode = mode
        self.classes = _long(classes)
        self.from_logits = from_logits
        self.smooth = smooth
        self.eps = eps
        self.log_loss = log_loss
        self.ignore_index = ignore_index
        self.class_weights = _float(class_weights)


def _region(self: Any, y_pred: Tensor, y_true: Tensor, prices: tuple[float, float], gamma: float = 1.0) -> Tensor:
    call = _read(self, y_pred, y_true, bool(self.from_logits))
    return value(
        call,
        _overlap,
        prices=(float(prices[0]), float(prices[1])),
        smooth=float(self.smooth),
        eps=float(self.eps),
        log=bool(self.log_loss),
        weights=_class_weights(self, call.input.shape[1] if call.reading.mode != BINARY_MODE else 1),
        gamma=float(gamma),
    )


def _class_weights(self: Any, channels: int) -> tuple[float, ...] | None:
    """Of every class, 0 for those that are left out."""
    if self.classes is None:
        weights: tuple[float, ...] | None = numbers(self.class_weights)
        return weights
    given = numbers(self.class_weights) or (1.0,) * channels
    chosen = [int(c) % channels for c in numbers(self.classes)]
    return tuple(given[c] * chosen.count(c) for c in range(channels))


class DiceLoss(_Region):
    """``segmentation_models_pytorch.losses.DiceLoss``: of the whole batch, whatever its samples."""

    def __init__(
        self,
        mode: str,
        classes: list[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__(mode, classes, log_loss, from_logits, smooth, ignore_index, eps, class_weights)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        if _has_hooks(self, "DiceLoss"):
            return _by_hooks(self, y_pred, y_true)
        return _region(self, y_pred, y_true, (0.5, 0.5))

    def aggregate_loss(self, loss: Tensor) -> Tensor:
        """One number from the losses of the classes; a subclass may have its own."""
        return _aggregate(self, loss)

    def compute_score(
        self, output: Tensor, target: Tensor, smooth: float = 0.0, eps: float = 1e-7, dims: Any = None
    ) -> Tensor:
        """Scores of probabilities ``(N, C, pixels)``; a subclass may have its own."""
        return soft_dice_score(output, target, smooth, eps, dims)


def _has_hooks(self: Any, name: str) -> bool:
    """Whether the score or the mean comes from another class than the one of that name, here or in SMP."""
    for hook in ("compute_score", "aggregate_loss"):
        owner = next((cls for cls in type(self).__mro__ if hook in vars(cls)), None)
        known = owner is not None and owner.__module__.startswith(("segfuse.compat.", "segmentation_models_pytorch."))
        if owner is not None and (owner.__name__ != name or not known):
            return True
    return False


def _aggregate(self: Any, loss: Tensor) -> Tensor:
    if self.class_weights is None:
        return loss.mean()
    weights = self.class_weights.to(loss.device)
    weights = weights if self.classes is None else weights[self.classes]
    return (loss * weights).sum() / weights.sum()


def _by_hooks(self: Any, y_pred: Tensor, y_true: Tensor) -> Tensor:
    """With the scores and the mean of a subclass, in torch operations."""
    record("a subclass computes its own score or mean")
    sums = Sums(_read(self, y_pred, y_true, bool(self.from_logits)))
    p, y = sums.p.flatten(2), sums.y.flatten(2)
    score = self.compute_score(p, y, smooth=self.smooth, eps=self.eps, dims=(0, 2))
    loss = -torch.log(score.clamp_min(self.eps)) if self.log_loss else 1 - score
    loss = loss * (y.sum((0, 2)) > 0)
    found: Tensor = self.aggregate_loss(loss if self.classes is None else loss[self.classes])
    return found


class JaccardLoss(_Region):
    """``segmentation_models_pytorch.losses.JaccardLoss``."""

    def __init__(
        self,
        mode: str,
        classes: list[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__(mode, classes, log_loss, from_logits, smooth, ignore_index, eps, class_weights)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return _region(self, y_pred, y_true, (1.0, 1.0))


class TverskyLoss(DiceLoss):
    """``segmentation_models_pytorch.losses.TverskyLoss``; the power ``gamma`` is of the mean."""

    def __init__(
        self,
        mode: str,
        classes: list[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 1.0,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__(mode, classes, log_loss, from_logits, smooth, ignore_index, eps, class_weights)
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        if _has_hooks(self, "TverskyLoss"):
            return _by_hooks(self, y_pred, y_true)
        return _region(self, y_pred, y_true, (self.alpha, self.beta), self.gamma)

    def aggregate_loss(self, loss: Tensor) -> Tensor:
        return _aggregate(self, loss) ** self.gamma

    def compute_score(
        self, output: Tensor, target: Tensor, smooth: float = 0.0, eps: float = 1e-7, dims: Any = None
    ) -> Tensor:
        return soft_tversky_score(output, target, self.alpha, self.beta, smooth, eps, dims)


# ------------------------------------------------------------------------------------------- focal


def _focal(s: PixelStats, gamma: float, alpha: float | None, weights: tuple[float, ...] | None, mean: bool) -> Array:
    """Of one sigmoid per class, averaged over the classes."""
    one, zero = s.term("focal", gamma)
    loss = one + zero if alpha is None else alpha * one + (1 - alpha) * zero
    loss = loss.sum(0, keepdim=True)
    if mean:
        count = s.count.sum(0, keepdim=True)
        loss = loss / where(count > 0, count, 1.0)
    if weights is None:
        return loss.sum() / s.geometry.shape[1]
    v = s.vector(weights)
    return (v * loss).sum() / v.sum()


class FocalLoss(Explained, _Loss):
    """``segmentation_models_pytorch.losses.FocalLoss``: a sigmoid per class in every mode."""

    def __init__(
        self,
        mode: str,
        alpha: float | None = None,
        gamma: float | None = 2.0,
        ignore_index: int | None = None,
        from_logits: bool = True,
        eps: float = 1e-7,
        reduction: str | None = "mean",
        normalized: bool = False,
        reduced_threshold: float | None = None,
        class_weights: list[float] | None = None,
    ) -> None:
        _check(mode, None, class_weights)
        super().__init__()
        self.mode = mode
        self.from_logits = from_logits
        self.ignore_index = ignore_index
        self.reduction = reduction  # type: ignore[assignment]
        self.eps = eps
        function: Any = focal_loss_with_logits
        self.focal_loss_fn: partial[Tensor] = partial(
            function,
            alpha=alpha,
            gamma=gamma,
            reduced_threshold=reduced_threshold,
            reduction=reduction,
            normalized=normalized,
        )
        self.class_weights = _float(class_weights)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        options = self.focal_loss_fn.keywords
        y_pred = floating(bare(y_pred))
        if not self.from_logits:
            p = y_pred.clamp(self.eps, 1 - self.eps)
            y_pred = p.log() if self.mode == MULTICLASS_MODE else (p / (1 - p)).log()
        call = _read(self, y_pred, y_true, True, one_vs_rest=True)
        if call.reading.mode == BINARY_MODE:
            call.reading = Reading(BINARY_MODE, ignore_index=call.reading.ignore_index)
        mean, weights = options["reduction"] == "mean", numbers(self.class_weights)
        plain = not options["normalized"] and options["reduced_threshold"] is None
        if plain and options["reduction"] in ("mean", "sum"):
            term = Term(
                _focal,
                hard_alone=self.mode != MULTICLASS_MODE,
                gamma=float(options["gamma"]),
                alpha=options["alpha"],
                weights=weights,
                mean=mean,
            )
            try:
                return total((1.0, call, term))
            except SoftTarget:
                pass
        return _focal_by_torch(self, call, options)


def _focal_by_torch(self: Any, call: Call, options: dict[str, Any]) -> Tensor:
    """Soft targets, normalised and reduced focal losses, and values of every element."""
    record("a soft target, or an option of the focal loss that is not a sum")
    z, y = call.input, call.target
    kept = None if self.ignore_index is None else y != self.ignore_index
    if self.mode == BINARY_MODE:
        pairs = [(z.flatten(), y.flatten(), None if kept is None else kept.flatten())]
    elif self.mode == MULTICLASS_MODE:
        pairs = [(z[:, c], (y == c), kept) for c in range(z.shape[1])]
    else:
        pairs = [(z[:, c], y[:, c], None if kept is None else kept[:, c]) for c in range(z.shape[1])]
    losses = [focal_loss_with_logits(*((a, b) if k is None else (a[k], b[k])), **options) for a, b, k in pairs]
    if self.mode == BINARY_MODE:
        return losses[0]
    stacked = torch.stack(losses)
    if self.class_weights is None:
        return stacked.mean()
    weights = self.class_weights.to(stacked.device)
    return (stacked * weights).sum() / weights.sum()


# ------------------------------------------------------------------------------------------- others


class LovaszLoss(Explained, _Loss):
    """``segmentation_models_pytorch.losses.LovaszLoss``; ``from_logits`` has no effect."""

    def __init__(
        self, mode: str, per_image: bool = False, ignore_index: int | None = None, from_logits: bool = True
    ) -> None:
        _check(mode, None, None)
        super().__init__()
        self.mode = mode
        self.ignore_index = ignore_index
        self.per_image = per_image

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        if self.mode == MULTICLASS_MODE:
            y_pred, y_true = floating(bare(y_pred)), bare(y_true)
            if y_pred.shape[1] == 1:
                raise ValueError("Sigmoid output possible only with 1 class. Try: mode='binary'")
            return softmax_of(y_pred, y_true, "present", self.per_image, self.ignore_index, from_logits=True)
        return lovasz_hinge(y_pred, y_true, self.per_image, self.ignore_index)


def _soft_bce(s: PixelStats, smooth: float, pos_weight: Any, reduction: str) -> Array:
    """Ignored elements stay in the mean's divisor."""
    one, zero = s.term("focal", 0.0)
    if smooth:
        every, rest = s.term("focal_all", 0.0)
        one, zero = (1 - smooth) * one + smooth * (every - one), (1 - smooth) * zero + smooth * (rest - zero)
    w = 1.0 if pos_weight is None else s.vector(pos_weight) if isinstance(pos_weight, tuple) else pos_weight
    loss = (w * one + zero).sum()
    return loss / (s.pixels * s.samples * s.geometry.shape[1]) if reduction == "mean" else loss


class SoftBCEWithLogitsLoss(Explained, nn.Module):
    """``segmentation_models_pytorch.losses.SoftBCEWithLogitsLoss``."""

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
        reduction: str = "mean",
        smooth_factor: float | None = None,
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.smooth_factor = smooth_factor
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        from .torch import _per_channel

        y_pred, y_true = floating(bare(y_pred)), bare(y_true)
        if y_pred.shape != y_true.shape:
            raise ValueError(f"Target size ({y_true.shape}) must be the same as input size ({y_pred.shape})")
        channels = self.pos_weight is None or _per_channel(self.pos_weight, y_pred)
        if self.weight is None and channels and y_pred.ndim > 1 and not by_torch_because(y_pred, y_true):
            pos_weight = numbers(self.pos_weight)
            if isinstance(pos_weight, tuple) and len(pos_weight) == 1:
                pos_weight = pos_weight[0]
            term = Term(
                _soft_bce, smooth=float(self.smooth_factor or 0), pos_weight=pos_weight, reduction=self.reduction
            )
            mode = "binary" if y_pred.shape[1] == 1 else "multilabel"
            ignore = NEVER if self.ignore_index is None else self.ignore_index
            call = Call(y_pred, y_true, Reading(mode, ignore_index=ignore))  # type: ignore[arg-type]
            try:
                return total((1.0, call, term)) if self.reduction in ("mean", "sum") else pixel_map(call, term)
            except ValueError:
                pass
        record("weights of elements")
        y = y_true.to(y_pred.dtype)
        if self.smooth_factor is not None:
            y = (1 - y) * self.smooth_factor + y * (1 - self.smooth_factor)
        loss = F.binary_cross_entropy_with_logits(y_pred, y, self.weight, pos_weight=self.pos_weight, reduction="none")
        if self.ignore_index is not None:
            loss = loss * (y_true != self.ignore_index)
        return loss.mean() if self.reduction == "mean" else loss.sum() if self.reduction == "sum" else loss


def _soft_ce(s: PixelStats, smoothing: float, mean: bool) -> Array:
    """Ignored pixels stay in the mean's divisor."""
    entropy = cross_entropy(s, smoothing=smoothing, reduction="sum")
    return entropy / (s.pixels * s.samples) if mean else entropy


class SoftCrossEntropyLoss(Explained, nn.Module):
    """``segmentation_models_pytorch.losses.SoftCrossEntropyLoss``; without ``smooth_factor`` nothing is smoothed."""

    def __init__(
        self,
        reduction: str = "mean",
        smooth_factor: float | None = None,
        ignore_index: int | None = -100,
        dim: int = 1,
    ) -> None:
        super().__init__()
        self.smooth_factor = smooth_factor
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.dim = dim

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        y_pred, y_true = floating(bare(y_pred)), bare(y_true)
        epsilon = float(self.smooth_factor or 0)
        x = y_pred if self.dim == 1 else y_pred.movedim(self.dim, 1)
        y = y_true
        if y.ndim == y_pred.ndim and y.shape[self.dim] == 1:
            y = y.squeeze(self.dim)
        if y.shape != (len(x), *x.shape[2:]):
            raise ValueError(
                f"y_true of shape {tuple(y_true.shape)} does not fit y_pred of shape {tuple(y_pred.shape)}. "
                "Try: y_true.argmax(1) for one-hot labels"
            )
        if x.shape[1] == 1 or (self.reduction not in ("mean", "sum") and by_torch_because(x, y)):
            record("one class")
            return label_smoothed_nll_loss(
                y_pred.log_softmax(self.dim), y_true.long(), epsilon, self.ignore_index, self.reduction, self.dim
            )
        ignore = NEVER if self.ignore_index is None else self.ignore_index
        call = Call(x, y, Reading("multiclass", ignore_index=ignore))
        if self.reduction in ("mean", "sum"):
            return value(call, _soft_ce, smoothing=epsilon, mean=self.reduction == "mean")
        found = pixel_map(call, Term(_soft_ce, smoothing=epsilon, mean=False))
        return found if self.ignore_index is None else found.unsqueeze(self.dim)


def _mcc(s: PixelStats, eps: float) -> Array:
    """One correlation of the batch; eps is added to each of the four counts."""
    s = s.then(lambda x: x.sum())
    tp, tn, fp, fn = s.tp + eps, s.tn + eps, s.fp + eps, s.fn + eps
    return 1 - (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()


class MCCLoss(Explained, _Loss):
    """``segmentation_models_pytorch.losses.MCCLoss``, of probabilities of one class."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        n = len(y_true)
        y_pred, y_true = floating(bare(y_pred)).reshape(n, 1, -1), bare(y_true).reshape(n, 1, -1)
        return value(Call(y_pred, y_true, Reading("binary", from_logits=False)), _mcc, eps=float(self.eps))


# ------------------------------------------------------------------------------------------- functions on tensors


def soft_tversky_score(
    output: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    smooth: float = 0.0,
    eps: float = 1e-7,
    dims: Any = None,
) -> Tensor:
    """``_functional.soft_tversky_score`` of probabilities, over any axes."""
    if output.size() != target.size():
        raise AssertionError(f"sizes differ: {tuple(output.shape)} and {tuple(target.shape)}")
    axes = tuple(range(output.ndim)) if dims is None else dims
    p, y, d = output.sum(axes), target.sum(axes), (output - target).abs().sum(axes)
    overlap = (p + y - d) / 2
    wrong = alpha * (p - overlap) + beta * (y - overlap)
    return (overlap + smooth) / (overlap + wrong + smooth).clamp_min(eps)


def soft_jaccard_score(
    output: Tensor, target: Tensor, smooth: float = 0.0, eps: float = 1e-7, dims: Any = None
) -> Tensor:
    """``_functional.soft_jaccard_score``."""
    return soft_tversky_score(output, target, 1.0, 1.0, smooth, eps, dims)


def soft_dice_score(output: Tensor, target: Tensor, smooth: float = 0.0, eps: float = 1e-7, dims: Any = None) -> Tensor:
    """``_functional.soft_dice_score``."""
    return soft_tversky_score(output, target, 0.5, 0.5, smooth, eps, dims)


def _modulated(
    entropy: Tensor,
    factor: Any,
    gamma: float,
    reduction: str | None,
    normalized: bool,
    reduced_threshold: float | None,
    eps: float,
) -> Tensor:
    p = torch.exp(-entropy)
    if reduced_threshold is None:
        fade = (1 - p) ** gamma
    else:
        fade = torch.where(p < reduced_threshold, 1.0, ((1 - p) / reduced_threshold) ** gamma)
    loss = fade * entropy * factor
    if normalized:
        loss = loss / fade.sum().clamp_min(eps)
    if reduction == "batchwise_mean":
        return loss.sum(0)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def focal_loss_with_logits(
    output: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    reduction: str = "mean",
    normalized: bool = False,
    reduced_threshold: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """``_functional.focal_loss_with_logits`` of elements of any shape."""
    y = target.to(output)
    entropy = F.binary_cross_entropy_with_logits(output, y, reduction="none")
    factor = 1.0 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
    return _modulated(entropy, factor, gamma, reduction, normalized, reduced_threshold, eps)


def softmax_focal_loss_with_logits(
    output: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    reduction: str = "mean",
    normalized: bool = False,
    reduced_threshold: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """``_functional.softmax_focal_loss_with_logits``."""
    entropy = F.cross_entropy(output, target.long(), reduction="none")
    return _modulated(entropy, 1.0, gamma, reduction, normalized, reduced_threshold, eps)


def label_smoothed_nll_loss(
    lprobs: Tensor,
    target: Tensor,
    epsilon: float,
    ignore_index: int | None = None,
    reduction: str = "mean",
    dim: int = -1,
) -> Tensor:
    """``_functional.label_smoothed_nll_loss`` of log-probabilities."""
    if target.dim() == lprobs.dim() - 1:
        target = target.unsqueeze(dim)
    kept = None if ignore_index is None else target != ignore_index
    labels = target if kept is None else torch.where(kept, target, 0)
    loss = -(1 - epsilon) * lprobs.gather(dim, labels)
    loss = loss - epsilon / lprobs.size(dim) * lprobs.sum(dim, keepdim=True)
    loss = loss.squeeze(dim) if kept is None else torch.where(kept, loss, 0)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss
