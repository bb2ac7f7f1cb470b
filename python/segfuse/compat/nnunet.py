"""``nnunetv2.training.loss``: the losses of nnU-Net v2. Dice values are negated scores, from -1 to 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import pixel_stats as op
from ..ops import top_k
from ..ops.formula import Array, PixelStats, coefficients, ratio
from ..ops.pixel_stats import NEVER
from ._adapter import (
    Call,
    Explained,
    Reading,
    Term,
    bare,
    binary_cross_entropy,
    by_torch_because,
    cross_entropy,
    floating,
    fused,
    groups,
    mean_count,
    numbers,
    record,
    reduced,
    total,
)
from .torch import BCEWithLogitsLoss, CrossEntropyLoss
from .torch import cross_entropy as torch_cross_entropy

__all__ = [
    "DC_and_BCE_loss",
    "DC_and_CE_loss",
    "DC_and_topk_loss",
    "DeepSupervisionWrapper",
    "MemoryEfficientSoftDiceLoss",
    "RobustCrossEntropyLoss",
    "SoftDiceLoss",
    "TopKLoss",
    "softmax_helper_dim1",
]


def softmax_helper_dim1(x: Tensor) -> Tensor:
    """The softmax over channels; the losses know it by its name and take the logits themselves."""
    return torch.softmax(x, 1)


def _activation(function: Callable[[Tensor], Tensor] | None) -> str | None:
    """Which one a callable is, if it is one that the pass has."""
    if function is torch.sigmoid or isinstance(function, nn.Sigmoid):
        return "sigmoid"
    if getattr(function, "__name__", "") == "softmax_helper_dim1" or (
        isinstance(function, nn.Softmax) and function.dim == 1
    ):
        return "softmax"
    return None


# ------------------------------------------------------------------------------------------- Dice


def _score(s: PixelStats, drop: bool, batch: bool, smooth: float, clip: float | None) -> Array:
    s = groups(s, drop, batch)
    tp, sizes = s.tp, s.pred + s.true
    if clip is not None:
        tp = s.tp.clamp(min=clip)
        sizes = sizes + 2 * (tp - s.tp)
    return -reduced((2 * tp + smooth) / (sizes + smooth).clamp(min=1e-8), "mean")


def _read(self: Any, x: Tensor, y: Tensor, loss_mask: Tensor | None) -> Call:
    """Class numbers, or a target shaped like the logits, as the pass takes them."""
    x, y = bare(x), bare(y)
    known = _activation(self.apply_nonlin)
    if known is None and self.apply_nonlin is not None:
        x = self.apply_nonlin(x)
    x = floating(x)
    one = x.shape[1] == 1
    if known == "softmax" and one:  # 1 everywhere
        x, known = torch.softmax(x, 1), None
    y = y.unsqueeze(1) if y.ndim != x.ndim else y
    dense = y.shape == x.shape
    softmax = known == "softmax"
    mode = "multiclass" if softmax or not dense else "binary" if one else "multilabel"
    reading = Reading(mode, known is not None, one_vs_rest=not dense and not softmax)  # type: ignore[arg-type]
    mask = None if loss_mask is None else bare(loss_mask)
    return Call(x, y, reading, mask)


def _soft_dice(self: Any, call: Call, clip: float | None) -> Tensor:
    if _shares_batch(self):
        return _global_dice(self, call, clip)
    return total((1.0, call, _dice_term(self, call, clip)))


def _dice_term(self: Any, call: Call, clip: float | None) -> Term:
    drop = not self.do_bg
    return Term(
        _score,
        drop=drop and call.input.shape[1] > 1,
        batch=bool(self.batch_dice),
        smooth=float(self.smooth),
        clip=clip,
    )


def _shares_batch(self: Any) -> bool:
    """Whether the batch of this process is one part of a larger one."""
    distributed = torch.distributed
    available = bool(self.ddp and self.batch_dice) and distributed.is_available() and distributed.is_initialized()
    return available and distributed.get_world_size() > 1


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad = grads[0].clone()
        torch.distributed.all_reduce(grad)
        return grad


def _global_dice(self: Any, call: Call, clip: float | None) -> Tensor:
    """Over the batches of all processes, which need not be of one size: their sums are added up."""
    record("sums of all processes")
    plain, r = call.plain(), call.reading
    x, g = op.check(
        plain.input,
        plain.target,
        mode=r.mode,
        from_logits=r.from_logits,
        one_vs_rest=r.one_vs_rest,
        ignore_index=r.ignore_index,
        mask=plain.mask,
    )
    plan = op.Plan(("true", "pred", "tp"))
    sums = _AllReduce.apply(op.sums(x, g, plan).sum(1))
    true, pred, overlap = (sums[plan.row(name)] for name in ("true", "pred", "tp"))
    tp = overlap if clip is None else overlap.clamp(min=clip)
    sizes = pred + true + 2 * (tp - overlap) + self.smooth
    score = (2 * tp + self.smooth) / sizes.clamp_min(1e-8)
    score = score if self.do_bg else score[1:]
    return -score.mean().to(torch.float64 if plain.input.dtype == torch.float64 else torch.float32)


class SoftDiceLoss(Explained, nn.Module):
    """``nnunetv2.training.loss.dice.SoftDiceLoss``."""

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
        clip_tp: float | None = None,
    ) -> None:
        super().__init__()
        self.do_bg = do_bg
        self.batch_dice = batch_dice
        self.apply_nonlin = apply_nonlin
        self.smooth = smooth
        self.clip_tp = clip_tp
        self.ddp = ddp

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        return _soft_dice(self, _read(self, x, y, loss_mask), self.clip_tp)


class MemoryEfficientSoftDiceLoss(Explained, nn.Module):
    """``nnunetv2.training.loss.dice.MemoryEfficientSoftDiceLoss``: the value of :class:`SoftDiceLoss`."""

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
    ) -> None:
        super().__init__()
        self.do_bg = do_bg
        self.batch_dice = batch_dice
        self.apply_nonlin = apply_nonlin
        self.smooth = smooth
        self.ddp = ddp

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        return _soft_dice(self, _read(self, x, y, loss_mask), None)


# ------------------------------------------------------------------------------------------- cross-entropy


class RobustCrossEntropyLoss(CrossEntropyLoss):
    """``nnunetv2.training.loss.robust_ce_loss.RobustCrossEntropyLoss``: targets may be float, with a channel."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _robust(self, input, target)


def _robust(self: Any, input: Tensor, target: Tensor) -> Tensor:
    if target.ndim == input.ndim:
        if target.shape[1] != 1:
            raise AssertionError(f"target must have one channel; got {tuple(target.shape)}. Try: target.argmax(1)")
        target = target[:, 0]
    return torch_cross_entropy(
        input,
        target,
        weight=self.weight,
        ignore_index=self.ignore_index,
        reduction=self.reduction,
        label_smoothing=self.label_smoothing,
    )


class TopKLoss(RobustCrossEntropyLoss):
    """``nnunetv2.training.loss.robust_ce_loss.TopKLoss``: the mean of the k percent largest values of the batch."""

    def __init__(
        self, weight: Tensor | None = None, ignore_index: int = -100, k: float = 10, label_smoothing: float = 0
    ) -> None:
        super().__init__(weight, None, ignore_index, None, "none", label_smoothing)
        self.k = k

    def forward(self, inp: Tensor, target: Tensor) -> Tensor:
        return _top_k(self, inp, target)


def _top_k(self: Any, inp: Tensor, target: Tensor) -> Tensor:
    inp, target = floating(bare(inp)), bare(target)[:, 0]
    if by_torch_because(inp, target):
        record("the call is being compiled or transformed")
        values = torch_cross_entropy(
            inp, target, self.weight, None, self.ignore_index, None, "none", self.label_smoothing
        ).flatten()
        return values.topk(int(values.numel() * self.k / 100), sorted=False).values.mean()
    weight, smoothing = numbers(self.weight), float(self.label_smoothing)
    term = Term(cross_entropy, weight=weight, smoothing=smoothing, reduction="none")
    kernel = fused(Reading("multiclass", ignore_index=self.ignore_index), ((1.0, term),))
    x, call = kernel.prepare(inp, target, None, None)
    record(kernel, Call(inp, target, kernel.reading))
    g, f = call.geometry, call.formula  # ignored voxels take part, with loss 0
    found: Tensor = top_k.top_k(x, g, f.plan, coefficients(x, g, f), None, self.k, per_sample=False, mean=True)
    return found


# ------------------------------------------------------------------------------------------- sums


def _plain(module: Any) -> Any:
    """What a compiled module was; the trainer compiles the Dice term."""
    return getattr(module, "_orig_mod", module)


def _is_dice(module: Any) -> bool:
    """A Dice term that shares its pass: one of ours or of nnU-Net, without a batch on other processes."""
    names = ("SoftDiceLoss", "MemoryEfficientSoftDiceLoss")
    return type(module).__name__ in names and hasattr(module, "batch_dice") and not _shares_batch(module)


def _entropy(s: PixelStats, weight: tuple[float, ...] | None, smoothing: float) -> Array:
    """The mean; 0 when no voxel is valid."""
    divisor = mean_count(s) if weight is None else (s.vector(weight) * s.true).sum()
    return ratio(cross_entropy(s, weight, smoothing, "sum"), divisor)


class DC_and_CE_loss(Explained, nn.Module):
    """``nnunetv2.training.loss.compound_losses.DC_and_CE_loss``: one pass for both."""

    def __init__(
        self,
        soft_dice_kwargs: dict[str, Any],
        ce_kwargs: dict[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
        dice_class: type[nn.Module] = SoftDiceLoss,
    ) -> None:
        super().__init__()
        if ignore_label is not None:
            ce_kwargs["ignore_index"] = ignore_label
        self.weight_dice = weight_dice
        self.weight_ce = weight_ce
        self.ignore_label = ignore_label
        self.ce = RobustCrossEntropyLoss(**ce_kwargs)
        self.dc = dice_class(apply_nonlin=softmax_helper_dim1, **soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        return _dice_and_entropy(self, net_output, target)


def _masked(self: Any, target: Tensor) -> tuple[Tensor, Tensor | None]:
    """The target of the Dice term, and where a voxel counts."""
    if self.ignore_label is None:
        return target, None
    if target.shape[1] != 1:
        raise AssertionError("ignore label is not implemented for one hot encoded target variables (DC_and_CE_loss)")
    mask = target != self.ignore_label
    return torch.where(mask, target, 0), mask


def _dice_and_entropy(self: Any, net_output: Tensor, target: Tensor) -> Tensor:
    input, target = floating(bare(net_output)), bare(target)
    dc, ce = _plain(self.dc), _plain(self.ce)
    masked = self.ignore_label is not None
    same = (
        self.weight_dice != 0
        and self.weight_ce != 0
        and target.ndim == input.ndim
        and target.shape[1] == 1 < input.shape[1]
        and _is_dice(dc)
        and _activation(dc.apply_nonlin) == "softmax"
        and ce.reduction == "mean"
        and (masked or ce.ignore_index == -100)
    )
    if same:
        reading = Reading("multiclass", ignore_index=self.ignore_label if masked else NEVER)
        call = Call(input, target, reading)
        term = Term(_entropy, weight=numbers(ce.weight), smoothing=float(ce.label_smoothing))
        overlap = _dice_term(dc, call, getattr(dc, "clip_tp", None))
        return total((self.weight_ce, call, term), (self.weight_dice, call, overlap))
    labels, mask = _masked(self, target)
    dice = self.dc(input, labels, loss_mask=mask) if self.weight_dice != 0 else 0
    entropy = self.ce(input, target[:, 0]) if self.weight_ce != 0 and (mask is None or bool(mask.any())) else 0
    value: Tensor = self.weight_ce * entropy + self.weight_dice * dice
    return value


def _region_entropy(s: PixelStats, pos_weight: Any) -> Array:
    """Over the valid voxels, added up over the regions."""
    return ratio(binary_cross_entropy(s, pos_weight, "sum"), mean_count(s))


class DC_and_BCE_loss(Explained, nn.Module):
    """``nnunetv2.training.loss.compound_losses.DC_and_BCE_loss``: regions; one pass for both.

    The last channel of the target says what to ignore, with ``use_ignore_label``.
    """

    def __init__(
        self,
        bce_kwargs: dict[str, Any],
        soft_dice_kwargs: dict[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        use_ignore_label: bool = False,
        dice_class: type[nn.Module] = MemoryEfficientSoftDiceLoss,
    ) -> None:
        super().__init__()
        if use_ignore_label:
            bce_kwargs["reduction"] = "none"
        self.weight_dice = weight_dice
        self.weight_ce = weight_ce
        self.use_ignore_label = use_ignore_label
        self.ce = BCEWithLogitsLoss(**bce_kwargs)
        self.dc = dice_class(apply_nonlin=torch.sigmoid, **soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        input, target = floating(bare(net_output)), bare(target)
        mask = None
        if self.use_ignore_label:
            mask, target = target[:, -1:] == 0, target[:, :-1]
        dc, ce = _plain(self.dc), _plain(self.ce)
        simple = ce.weight is None and (ce.pos_weight is None or ce.pos_weight.numel() == 1)
        expected = "mean" if mask is None else "none"
        if (
            simple
            and ce.reduction == expected
            and target.shape == input.shape
            and _is_dice(dc)
            and _activation(dc.apply_nonlin) == "sigmoid"
        ):
            call = _read(dc, input, target, mask)
            weight = numbers(ce.pos_weight)
            weight = weight[0] if isinstance(weight, tuple) else weight
            entropy = (
                Term(binary_cross_entropy, pos_weight=weight)
                if mask is None
                else Term(_region_entropy, pos_weight=weight)
            )
            dice = _dice_term(dc, call, getattr(dc, "clip_tp", None))
            return total((self.weight_ce, call, entropy), (self.weight_dice, call, dice))
        found = self.ce(input, target.float())
        if mask is not None:
            found = (found * mask).sum() / mask.sum().clip(min=1e-8)
        value: Tensor = self.weight_ce * found + self.weight_dice * self.dc(input, target, loss_mask=mask)
        return value


class DC_and_topk_loss(Explained, nn.Module):
    """``nnunetv2.training.loss.compound_losses.DC_and_topk_loss``."""

    def __init__(
        self,
        soft_dice_kwargs: dict[str, Any],
        ce_kwargs: dict[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        if ignore_label is not None:
            ce_kwargs["ignore_index"] = ignore_label
        self.weight_dice = weight_dice
        self.weight_ce = weight_ce
        self.ignore_label = ignore_label
        self.ce = TopKLoss(**ce_kwargs)
        self.dc = SoftDiceLoss(apply_nonlin=softmax_helper_dim1, **soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        net_output, target = bare(net_output), bare(target)
        labels, mask = _masked(self, target)
        dice = self.dc(net_output, labels, loss_mask=mask) if self.weight_dice != 0 else 0
        entropy = self.ce(net_output, target) if self.weight_ce != 0 and (mask is None or bool(mask.any())) else 0
        value: Any = self.weight_ce * entropy + self.weight_dice * dice
        return value


class DeepSupervisionWrapper(nn.Module):
    """``nnunetv2.training.loss.deep_supervision.DeepSupervisionWrapper``: a loss over lists, weight 0 skipped."""

    def __init__(self, loss: Callable[..., Tensor], weight_factors: Any = None) -> None:
        super().__init__()
        if weight_factors is not None and not any(x != 0 for x in weight_factors):
            raise AssertionError("At least one weight factor should be != 0.0")
        self.weight_factors = None if weight_factors is None else tuple(weight_factors)
        self.loss = loss

    def forward(self, *args: Any) -> Tensor:
        if not all(isinstance(x, tuple | list) for x in args):
            raise AssertionError(f"all args must be either tuple or list, got {[type(x) for x in args]}")
        weights = (1,) * len(args[0]) if self.weight_factors is None else self.weight_factors
        value: Any = 0
        for weight, inputs in zip(weights, zip(*args)):
            if weight != 0:
                value = value + weight * self.loss(*inputs)
        return value
