"""What the losses have in common that weigh a pixel by its distance: masks, fields and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..ops.formula import Array, PixelStats, ratio, where
from ..ops.pixel_stats import Geometry, Tensors, ignored, may_look
from ._base import Loss, Options, UnbackedOptions, number, one_of
from .cross_entropy import CrossEntropyLoss

ABSENT = -(1 << 31)  # a class number that no label has: the field of an empty mask is 0
Hard = Literal["threshold", "argmax"]
Spacing = float | Sequence[float] | None


class DistanceOptions(Options, total=False):
    spacing: Spacing


def hard_option(value: str) -> Hard:
    found: Hard = one_of("hard", value, ("threshold", "argmax"))
    return found


def spacing_option(value: Spacing) -> float | tuple[float, ...] | None:
    if value is None:
        return None
    spacing = float(value) if isinstance(value, int | float | Real) else tuple(float(s) for s in value)
    sizes = spacing if isinstance(spacing, tuple) else (spacing,)
    if not sizes or not all(s > 0 and math.isfinite(s) for s in sizes):
        raise ValueError(
            f"spacing must be a size > 0, or one for each spatial axis; got {value!r}. Try: spacing=(1.0, 1.0) in 2-D"
        )
    return spacing


def positive(name: str, value: float) -> float:
    number(name, value)
    if value == 0:
        raise ValueError(f"{name} must be above 0; got 0. Try: {name}=1.0")
    return float(value)


# ------------------------------------------------------------------------------------------- masks and fields


def dtype(x: Tensors) -> torch.dtype:
    """Of the distances."""
    return torch.float64 if x.input.dtype == torch.float64 else torch.float32


def valid(x: Tensors, g: Geometry) -> Tensor:
    """Where a pixel counts: bool ``(N, 1 or C, *spatial)``."""
    labels = x.target.reshape(g.shape[0], 1 if g.index_target else g.shape[1], *g.spatial)
    kept = ~ignored(labels, g.ignore_index)
    if g.exclusive and not g.index_target:
        kept = kept.all(1, keepdim=True)
    if x.mask is None:
        return kept
    channels = g.shape[1] if x.mask.shape == g.shape else 1
    return kept & (x.mask.reshape(g.shape[0], channels, *g.spatial) != 0)


def _soft(x: Tensors, g: Geometry, kept: Tensor) -> Tensor:
    labels = x.target.reshape(g.shape)
    return kept & (labels != 0) & (labels != 1)


def hard_only(d: Tensor, x: Tensors, g: Geometry) -> Tensor:
    """A map made of :func:`target_masks`; NaN where those could not look and the target is soft."""
    if may_look(x.target) or g.index_target or not x.target.dtype.is_floating_point:
        return d
    return torch.where(_soft(x, g, valid(x, g)).any(), torch.nan, d)


def target_masks(x: Tensors, g: Geometry, wait: bool = False) -> Tensor:
    """The target as labels ``(N, *spatial)``, -1 where nothing counts, or as masks ``(N, C, *spatial)``.

    Raises:
        ValueError: the target is soft. On a GPU only with ``wait``, as that waits for the device.
    """
    kept = valid(x, g)
    if g.index_target:
        return torch.where(kept, x.target.reshape(kept.shape).to(torch.int32), -1).squeeze(1).contiguous()
    labels = x.target.reshape(g.shape)
    if labels.dtype.is_floating_point and (wait or may_look(labels)):
        soft = _soft(x, g, kept)
        if bool(soft.any()):
            raise ValueError(
                f"a distance needs a hard target of 0 and 1; got {float(labels[soft][0]):g}. Try: target > 0.5"
            )
    return ((labels == 1) & kept).contiguous()


def predicted_masks(x: Tensors, g: Geometry, hard: Hard) -> Tensor:
    """The same for the prediction: p > 0.5, or under softmax the largest p."""
    z = x.input.detach().reshape(g.shape)
    kept = valid(x, g)
    if not g.exclusive:
        return ((z > (0.5 if g.activation == "identity" else 0.0)) & kept).contiguous()
    top, label = z.max(1, keepdim=True)
    if hard == "threshold":
        kept = kept & (top > 0.5 if g.activation == "identity" else (z - top).float().exp_().sum(1, keepdim=True) < 2)
    return torch.where(kept, label.to(torch.int32), -1).squeeze(1).contiguous()


def one_hot(masks: Tensor, g: Geometry) -> Tensor:
    """Masks ``(N, C, *spatial)`` of labels ``(N, *spatial)``."""
    if masks.ndim == len(g.shape):
        return masks
    classes = torch.arange(g.shape[1], dtype=masks.dtype, device=masks.device)
    return masks.unsqueeze(1) == classes.reshape(1, -1, *[1] * len(g.spatial))


def per_class(t: Tensor, g: Geometry) -> Tensor:
    """A map of pixels or of classes as ``(N, C, *spatial)``."""
    return (t.unsqueeze(1) if t.ndim < len(g.shape) else t).expand(g.shape)


def label_map(masks: Tensor, g: Geometry) -> Tensor:
    """Labels 0, 1, ...: the classes of ``(N, *spatial)`` where they exclude each other, else 0 and 1 per channel."""
    if masks.ndim == len(g.shape):
        return masks.to(torch.uint8).argmax(1) if g.exclusive else masks
    return masks.clamp(0, g.shape[1] - 1)  # the pass finds what is out of range


# ------------------------------------------------------------------------------------------- losses


class DistanceLoss(Loss):
    """A mean over pixels and classes, each weighed by a distance map that carries no gradient.

    Args:
        spacing: size of a pixel, along every spatial axis or one for each, in the unit of the distances. Default: 1.
        include_background: default: ``False`` in multiclass mode, else ``True``.

    ``reduction="none"`` gives the mean over the valid pixels of every (sample, class). Without a valid pixel loss and
    gradient are 0.
    """

    measures = True

    def __init__(
        self, *, include_background: bool | None = None, spacing: Spacing = None, **common: Unpack[UnbackedOptions]
    ) -> None:
        super().__init__(include_background=include_background, **common)
        self.spacing = spacing_option(spacing)

    def check(
        self,
        input: Tensor,
        target: Tensor,
        weight_map: Tensor | None,
        mask: Tensor | None,
        distance_map: Tensor | None = None,
    ) -> tuple[Tensors, Geometry]:
        x, g = super().check(input, target, weight_map, mask, distance_map)
        d, classes = x.distance, g.shape[1] - int(self.leaves_out_background(g))
        if d is not None and classes > 1 and (d.ndim < len(g.shape) or d.shape[1] == 1):
            raise ValueError(
                f"every class has distances of its own; got a distance_map {tuple(d.shape)} for {g.shape[1]} classes. "
                f"Try: a map {g.shape}, as transforms with num_classes={g.shape[1]} make it"
            )
        return x, g

    def field(self, transform: Callable[..., Tensor], masks: Tensor, x: Tensors, g: Geometry, **options: Any) -> Tensor:
        """One distance field per class, ``(N, C, *spatial)``; 0 for a class that is left out."""
        background = not self.leaves_out_background(g)
        if masks.ndim == len(g.shape):
            if not background:
                masks[:, 0] = False
        else:
            options["classes"] = (0 if background else ABSENT, *range(1, g.shape[1]))
        return transform(masks, spatial_dims=len(g.spatial), spacing=self.spacing, dtype=dtype(x), **options)

    def total(self, s: PixelStats) -> Array:
        """The sum over the pixels of every (sample, class)."""
        raise NotImplementedError

    def value(self, s: PixelStats) -> Array:
        v = self.weights(s)
        s = self.foreground(s)
        total, count = (x if v is None else v * x for x in (self.total(s), s.count))
        if self.reduction == "none":
            return total / where(s.count > 0, s.count, 1.0)
        return total.sum() if self.reduction == "sum" else ratio(total.sum(), count.sum())


class MappedCrossEntropyLoss(CrossEntropyLoss):
    """Cross-entropy of every pixel times a distance map."""

    measures = True

    def entropy(self, s: PixelStats, gamma: float = 0.0, mapped: bool = True) -> tuple[Array, Array]:
        return super().entropy(s, gamma, mapped)
