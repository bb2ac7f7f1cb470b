"""lovasz_extension: errors sorted, and weighed by how much each adds to the Jaccard loss of the worst pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from .._traced import traceable_function
from ..backends import pick
from .pixel_stats import Geometry, Mode, Tensors, check, ignored, raise_invalid

Classes = Literal["present", "all"] | Sequence[int]
MAX_OFFSET = 2**32  # a sorted pixel holds its place in 32 bits


@dataclass(frozen=True, slots=True)
class Problems:
    """Which sets of pixels are sorted: one for each class of each sample, or of the batch."""

    hinge: bool  # errors max(0, 1 - z (2y - 1)) of scores z; otherwise |y - p|
    per_image: bool
    present: bool  # a class without a pixel in its problem has loss 0 and no gradient
    wanted: tuple[bool, ...]  # by class
    keep_slopes: bool = True  # d(loss) / d(error) of every pixel, from which a gradient follows

    def count(self, g: Geometry) -> tuple[int, int]:
        return (g.shape[0] if self.per_image else 1), g.shape[1]


def check_classes(classes: Classes) -> None:
    """
    Raises:
        ValueError: neither a known word nor class numbers.
    """
    if classes in ("present", "all"):
        return
    numbers = classes if isinstance(classes, list | tuple | range) else ()
    if not numbers or any(isinstance(c, bool) or not isinstance(c, int) for c in numbers):
        raise ValueError(
            f"classes must be 'present', 'all' or a list of class numbers; got {classes!r}. Try: classes='present'"
        )


def refuse_weights(weight_map: Tensor | None) -> None:
    """
    Raises:
        ValueError: there is a weight map.
    """
    if weight_map is not None:
        raise ValueError(
            "weight_map has no meaning for the Lovasz extension, whose weights follow from the order of the errors; "
            "got a weight_map. Try: mask=weight_map > 0, or class_weight=[...]"
        )


def problems(g: Geometry, per_image: bool | None, classes: Classes, include_background: bool = True) -> Problems:
    """What to sort.

    Raises:
        ValueError: a class number that the input does not have.
    """
    C = g.shape[1]
    chosen = range(C) if isinstance(classes, str) else classes
    if not all(0 <= c < C for c in chosen):
        raise ValueError(
            f"classes must hold numbers 0 to {C - 1} for input {g.shape}; got {list(chosen)}. Try: classes='present'"
        )
    hinge = not g.exclusive
    wanted = tuple(c in chosen and (include_background or c > 0) for c in range(C))
    return Problems(hinge, hinge if per_image is None else per_image, classes == "present" and not hinge, wanted)


def classes_at_a_time(classes: int, how: Problems) -> int:
    """That a kernel holds the errors of: all for a gradient, which takes the slopes that come in their place.

    Without one few, as each takes 4 bytes a pixel; 8 lots, as each makes the softmax of all classes anew.
    """
    return classes if how.keep_slopes else min(classes, max(4, -(-classes // 8)))


def raise_target(x: Tensors, g: Geometry) -> None:
    """Says which target is not hard. Slow: runs only on the way to an error."""
    if not g.index_target and x.target.dtype.is_floating_point:
        soft = (x.target > 0) & (x.target < 1) & ~ignored(x.target, g.ignore_index)
        if bool(soft.any()):
            where = tuple(int(i) for i in soft.nonzero()[0])
            raise ValueError(
                f"the Lovasz extension sorts pixels of a hard target: 0, 1 or ignore_index={g.ignore_index}; "
                f"got {x.target[where].item():g} at {where}. Try: (target > 0.5).to(target.dtype)"
            )
    raise_invalid(x, g)


def backend(x: Tensors, g: Geometry) -> ModuleType:
    """More than 2^32 logits are left to the reference."""
    if x.input.numel() >= MAX_OFFSET:
        from ..backends.reference import lovasz_extension as reference

        return reference
    return pick("lovasz_extension", x.input)


class _LovaszExtension(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, x: Tensors, g: Geometry, how: Problems) -> tuple[Tensor, Tensor]:
        value, positives, slope, invalid = backend(x, g).forward(x, g, how)
        if invalid:
            raise_target(x, g)
        ctx.geometry, ctx.how = g, how
        ctx.slope = slope
        ctx.save_for_backward(*x._replace(input=input))
        ctx.mark_non_differentiable(positives)
        return value, positives

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x = Tensors(*ctx.saved_tensors)
        g, how, grad = ctx.geometry, ctx.how, grads[0].contiguous()
        # The gradient may be written over the slopes: a second backward pass sorts again.
        slope, ctx.slope = ctx.slope, None
        if slope is None:
            slope = backend(x, g).forward(x, g, how)[2]
        if torch.is_grad_enabled() and (x.input.requires_grad or grad.requires_grad):
            from ..backends.reference import lovasz_extension as reference

            return reference.backward(x, g, how, slope, grad), None, None, None
        return backend(x, g).backward(x, g, how, slope, grad), None, None, None


def lovasz(x: Tensors, g: Geometry, how: Problems) -> tuple[Tensor, Tensor]:
    """Differentiable losses ``(N or 1, C)`` in float64, and how many pixels each class has there."""
    how = replace(how, keep_slopes=torch.is_grad_enabled() and x.input.requires_grad)
    return _LovaszExtension.apply(x.input, x, g, how)


@traceable_function
def lovasz_extension(
    input: Tensor,
    target: Tensor,
    *,
    mode: Mode = "auto",
    per_image: bool | None = None,
    classes: Classes = "present",
    from_logits: bool = True,
    ignore_index: int = -100,
    mask: Tensor | None = None,
) -> Tensor:
    """The Lovasz extension of the Jaccard loss of every class, differentiable.

    Args:
        input: logits ``(N, C, *spatial)``, or probabilities with ``from_logits=False``.
        target: class numbers ``(N, *spatial)``, or 0/1 masks shaped like ``input``.
        per_image: sort each image by itself; otherwise the batch. Default: for binary and multilabel only.
        classes: of a multiclass target, which have a loss: ``"present"``, ``"all"`` or a list; the others get 0.
    Returns:
        float64 ``(N, C)`` with ``per_image``, else ``(1, C)``.
    Raises:
        ValueError: a shape or a target value does not fit, or the target is soft.
        TypeError: a dtype does not fit.

    Source: Berman et al. 2018 (arXiv 1705.08790), algorithm 1.
    """
    check_classes(classes)
    x, g = check(input, target, mode=mode, from_logits=from_logits, ignore_index=ignore_index, mask=mask)
    return lovasz(x, g, problems(g, per_image, classes))[0]
