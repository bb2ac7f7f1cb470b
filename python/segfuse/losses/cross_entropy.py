"""Cross-entropy: plain, weighted, balanced, and the hardest pixels only."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..ops import top_k as op
from ..ops.formula import Array, Call, PixelStats, coefficients, never_ignored, ratio, where
from ..ops.pixel_stats import Geometry, Tensors, ignored
from ._base import PixelLoss, PixelOptions, UnweightedPixelOptions, loss_map, number, one_of

__all__ = ["BalancedCrossEntropyLoss", "CrossEntropyLoss", "TopKCrossEntropyLoss"]


class CrossEntropyLoss(PixelLoss):
    """Cross-entropy: ``-[beta y log p + (1-y) log(1-p)]``, or ``-a_y log p_y`` over classes.

    Args:
        beta: weight of the positives (torch's ``pos_weight``), a number or one per channel; above 1 misses cost more,
            below 1 false alarms. Not for multiclass.
        class_weight: one weight per class, or ``"balanced"``: valid pixels / (classes present x pixels of the class),
            of each batch. With class weights a multiclass mean divides by their sum over the pixels, as torch does
            where the target holds class numbers.

    Source: Jadon 2020 (arXiv 2006.14822), II-A and II-B.
    """

    class_weight_words = ("balanced",)

    def __init__(
        self,
        *,
        beta: float | Sequence[float] = 1.0,
        class_weight: Sequence[float] | Tensor | str | None = None,
        **common: Unpack[UnweightedPixelOptions],
    ) -> None:
        super().__init__(class_weight=class_weight, **common)
        self.beta = number("beta", tuple(beta) if isinstance(beta, Sequence) else beta)

    def pixel(self, s: PixelStats) -> Array:
        one, zero = self.entropy(s)
        if s.multiclass:
            if self.beta != 1:
                raise ValueError(
                    f"beta weighs the positives of a sigmoid; mode is multiclass and beta={self.beta!r}. "
                    "Try: class_weight=[...]"
                )
            return self.weighted(s, one)
        beta = self.beta
        if isinstance(beta, tuple):
            beta = s.vector(beta)[:, 1:] if self.drops_background(s) else s.vector(beta)
        return self.weighted(s, beta * one + zero)

    def normaliser(self, s: PixelStats) -> Array:
        if self.normalize is None and s.multiclass and self.class_weight is not None:
            return self.weighted(s, s.true).sum()
        return super().normaliser(s)


class BalancedCrossEntropyLoss(PixelLoss):
    """Cross-entropy with weight beta on the positives and 1 - beta on the negatives.

    Args:
        beta: a number in [0, 1], or ``"auto"``: the share of negatives.
        beta_scope: what the share is taken of: every ``"sample"`` or the whole ``"batch"``; always per channel.
        beta_clip: ``"auto"`` stays in [beta_clip, 1 - beta_clip]. Without it an image without positives gives loss 0
            and gradient 0, exactly where false positives should be pushed down.

    Multiclass takes a number only: beta for the classes above 0, 1 - beta for class 0.
    Source: Xie and Tu 2015 (arXiv 1504.06375) eq. 2; Jadon II-C.
    """

    def __init__(
        self,
        *,
        beta: float | Literal["auto"] = "auto",
        beta_scope: Literal["sample", "batch"] = "sample",
        beta_clip: float = 1e-3,
        **common: Unpack[PixelOptions],
    ) -> None:
        super().__init__(**common)
        self.beta = beta if beta == "auto" else number("beta", beta, 0, 1)
        self.beta_scope = one_of("beta_scope", beta_scope, ("sample", "batch"))
        self.beta_clip = number("beta_clip", beta_clip, 0, 0.5)

    def pixel(self, s: PixelStats) -> Array:
        one, zero = self.entropy(s)
        beta: Array = self.beta
        if s.multiclass:
            if beta == "auto":
                raise ValueError(
                    "beta='auto' needs mode binary or multilabel. Try: CrossEntropyLoss(class_weight='balanced')"
                )
            background = s.class_index[:, 1:] * 0 if self.drops_background(s) else where(s.class_index == 0, 1.0, 0.0)
            return self.weighted(s, (beta + (1 - 2 * beta) * background) * one)
        if beta == "auto":
            positive, valid = s.true_count, s.count
            if self.beta_scope == "batch":
                positive, valid = positive.sum(0, keepdim=True), valid.sum(0, keepdim=True)
            beta = (1 - ratio(positive, valid)).clamp(self.beta_clip, 1 - self.beta_clip)
        return self.weighted(s, beta * one + (1 - beta) * zero)


class TopKCrossEntropyLoss(CrossEntropyLoss):
    """The mean of the k percent largest cross-entropy values.

    Args:
        k: percent of the valid pixels, above 0 and up to 100; at least one pixel. Ties go to the lower index.
        per_sample: select within every sample instead of within the batch, then average over samples.

    Source: Wu et al. 2016 (arXiv 1605.06885).
    """

    fusable = False
    by_pixel = True

    def __init__(self, *, k: float = 10.0, per_sample: bool = False, **common: Unpack[PixelOptions]) -> None:
        super().__init__(**common)
        self.k = number("k", k, 1e-9, 100)
        self.per_sample = bool(per_sample)

    def parts(self, s: PixelStats) -> tuple[Array, list[Array]]:
        return self.pixel(self.foreground(s)).sum(), []

    def evaluate(self, x: Tensors, call: Call, with_terms: bool = False) -> tuple[Tensor, Sequence[Tensor]]:
        g, f = call.geometry, call.formula
        valid = self._valid(x, g)
        if self.reduction == "none":
            loss = loss_map(x, call)
            rows = g.shape[0] if self.per_sample else 1
            chosen = op.select(loss.detach().reshape(rows, loss.numel() // max(rows, 1)), valid, self.k).chosen
            return torch.where(chosen.reshape(loss.shape) > 0, loss, 0.0), []
        weights, mean = coefficients(x, g, f), self.reduction == "mean"
        return op.top_k(x, g, f.plan, weights, valid, self.k, per_sample=self.per_sample, mean=mean), []

    def _valid(self, x: Tensors, g: Geometry) -> Tensor | None:
        """Which values of the loss map may be chosen, a row for each selection; None: all."""
        drop = self.leaves_out_background(g)
        if never_ignored(x, g) and not drop:
            return None
        kept = _kept(x, g)
        if drop:
            if g.index_target:
                kept = kept & (x.target.reshape(kept.shape) != 0)
            elif g.exclusive:
                kept = kept & (x.target[:, 1:] != 0).any(1)
            else:
                kept = kept.expand(g.map_shape).clone()
                kept[:, 0] = False
        rows = g.shape[0] if self.per_sample else 1
        return kept.expand(g.map_shape).reshape(rows, prod(g.map_shape) // max(rows, 1)).contiguous()


def _kept(x: Tensors, g: Geometry) -> Tensor:
    """Where the loss map has a valid pixel."""
    dense = g.exclusive and not g.index_target
    kept = ~ignored(x.target, g.ignore_index)
    kept = (
        kept.all(1)
        if dense
        else kept.reshape(g.map_shape)
        if kept.numel() == torch.Size(g.map_shape).numel()
        else kept[:, None]
    )
    if x.mask is not None:
        mask = x.mask != 0
        if mask.ndim != kept.ndim:
            mask = mask.squeeze(1) if mask.ndim > kept.ndim else mask[:, None]
        kept = kept & mask
    return kept
