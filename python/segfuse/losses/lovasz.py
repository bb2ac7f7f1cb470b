"""The Lovasz extension of the Jaccard loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..ops import lovasz_extension as op
from ..ops.formula import one_per_class
from ..ops.lovasz_extension import Classes, Problems
from ..ops.pixel_stats import Geometry, Tensors
from ._base import Loss, Options

__all__ = ["LovaszLoss"]


class LovaszLoss(Loss):
    """``sum_k e_(k) (J_k - J_(k-1))``: errors, largest first, each weighed by what it adds to the Jaccard loss
    ``J_k = 1 - (G - F_k) / (G + B_k)`` of a prediction that is wrong at the first k pixels.

    G: pixels of the class, F and B: pixels of the class and others among the first k. Binary and multilabel use the
    hinge errors ``max(0, 1 - z (2y - 1))`` of the logits, multiclass ``|y - p|`` of the softmax of every class.

    Args:
        per_image: sort every image by itself and average over images; otherwise sort the batch. Default: ``True`` for
            binary and multilabel, ``False`` for multiclass.
        classes: of a multiclass target, which are averaged: ``"present"`` those with a pixel (in the image, with
            ``per_image``), ``"all"``, or a list of class numbers, which also chooses channels of a multilabel target.

    The target is hard (0, 1 or class numbers), and a weight map has no meaning here; the mean over classes takes
    ``class_weight``. Probabilities of a sigmoid (``from_logits=False``) are turned back into logits.
    For a gradient 4 bytes of every logit are kept (8 for float64), twice what half logits take; the value alone needs
    them of an eighth of the classes, and at least 4, at a time. A GPU takes 16 bytes more (24 for float64) for each
    pixel that it sorts at a time: those of one class, or of several with up to 4 million pixels together.
    Source: Berman et al. 2018 (arXiv 1705.08790), algorithm 1.
    """

    own_pass = True

    def __init__(
        self, *, per_image: bool | None = None, classes: Classes = "present", **common: Unpack[Options]
    ) -> None:
        super().__init__(**common)
        self.per_image = None if per_image is None else bool(per_image)
        self.classes = classes

    @property
    def classes(self) -> Classes:
        """Which classes are averaged."""
        return self._classes

    @classes.setter
    def classes(self, value: Classes) -> None:
        self._classes: Classes = tuple(value) if isinstance(value, list | range) else value
        op.check_classes(self._classes)

    def check(
        self,
        input: Tensor,
        target: Tensor,
        weight_map: Tensor | None,
        mask: Tensor | None,
        distance_map: Tensor | None = None,
    ) -> tuple[Tensors, Geometry]:
        op.refuse_weights(weight_map)
        return super().check(input, target, None, mask, distance_map)

    def problems(self, g: Geometry) -> Problems:
        return op.problems(g, self.per_image, self.classes, not self.leaves_out_background(g))

    def compute(self, x: Tensors, g: Geometry, **more: Any) -> Tensor:
        how = self.problems(g)
        weight = [float(wanted) for wanted in how.wanted]
        if self.class_weight is not None:
            weight = [v * w for v, w in zip(one_per_class(self.class_weight, g.shape[1]), weight, strict=True)]
        losses, positives = op.lovasz(x, g, how)
        return self.reduce(losses, positives, how, _vector(weight, losses))

    def unreduced_shape(self, g: Geometry) -> tuple[int, ...]:
        how = self.problems(g)
        rows, _ = how.count(g)
        return (rows, sum(how.wanted)) if how.per_image else (sum(how.wanted),)

    def explanation(self, input: Tensor, target: Tensor) -> str:
        x, g = self.check(input, target, None, None)
        how = self.problems(g)
        rows, _ = how.count(g)
        backend = op.backend(x, g).__name__.split(".")[-2]
        errors = "hinge" if how.hinge else g.activation
        return f"mode {g.mode}, {errors} errors; lovasz_extension on {backend}: {rows * sum(how.wanted)} sorts"

    def reduce(self, losses: Tensor, positives: Tensor, how: Problems, weight: Tensor) -> Tensor:
        """One number, or the weighted loss of every wanted class, from ``(P, C)`` losses."""
        if self.reduction == "sum":
            return (losses * weight).sum()
        if self.reduction == "none":
            weighted = losses * weight
            if not all(how.wanted):
                kept = [weighted[:, c : c + 1] for c, wanted in enumerate(how.wanted) if wanted]
                weighted = torch.cat(kept or [weighted[:, :0]], 1)
            return weighted if how.per_image else weighted[0]
        counted = weight * (positives > 0) if how.present else weight.expand_as(losses)
        total = counted.sum(1, keepdim=True)
        return (losses * (counted / torch.where(total > 0, total, 1))).sum() / max(len(losses), 1)


def _vector(values: list[float], like: Tensor) -> Tensor:
    """On the device of ``like``. A GPU is not made to wait for a copy: it fills in what differs from 1."""
    if not like.is_cuda:
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    vector = torch.ones(len(values), dtype=like.dtype, device=like.device)
    for c, value in enumerate(values):
        if value != 1:
            vector[c] = value
    return vector
