"""Blob loss: every object counts alike, however small."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..maps import connected_components
from ..ops import pixel_stats as op
from ..ops.formula import tensor_stats
from ..ops.pixel_stats import Geometry, Mode, Plan, Segments, Tensors
from ._base import Loss, number, one_of
from ._distance import one_hot, per_class, target_masks, valid
from .dice import DiceLoss

__all__ = ["BlobLoss"]


class BlobLoss(Loss):
    """A criterion on the whole image plus its mean over the objects (blobs), each without the others.

    ``L = weight_global criterion(z, y) + weight_blob mean_n mean_b criterion(z, blob b alone)``, the mean over samples
    taken of those with a blob.

    Args:
        criterion: any loss that is a formula on sums, such as Dice, Tversky or cross-entropy, binary in its settings;
            its ``mode``, ``from_logits``, ``ignore_index`` and ``reduction`` are those of this loss. Default: Dice.
        weight_global: of the first term.
        weight_blob: of the second term.
        masking: what the other blobs are for a blob: ``"exclude"`` not there; ``"zero_logit"`` background with logit 0,
            as in the authors' code.
        include_background: default: ``False`` in multiclass mode, else ``True``.

    Blobs are ``instances=`` of the call, a label map shaped like the target (0 is background), or the connected
    components of the target, corners included, per class. The sums of all blobs are made in one pass over memory. In
    multiclass mode every class is a binary problem of its softmax probability in the second term.
    Source: Kofler et al. 2022 (arXiv 2205.08209).
    """

    own_pass = True

    def __init__(
        self,
        criterion: Loss | None = None,
        *,
        weight_global: float = 2.0,
        weight_blob: float = 1.0,
        masking: Literal["exclude", "zero_logit"] = "exclude",
        mode: Mode = "auto",
        from_logits: bool = True,
        reduction: Literal["mean", "sum"] = "mean",
        ignore_index: int = -100,
        class_weight: Sequence[float] | Tensor | None = None,
        include_background: bool | None = None,
    ) -> None:
        super().__init__(
            mode=mode,
            from_logits=from_logits,
            reduction=one_of("reduction", reduction, ("mean", "sum")),
            ignore_index=ignore_index,
            class_weight=class_weight,
            include_background=include_background,
        )
        self.criterion = copy.deepcopy(DiceLoss() if criterion is None else criterion)
        if not isinstance(self.criterion, Loss) or not self.criterion.fusable or self.criterion.measurer is not None:
            raise TypeError(
                f"criterion must be a loss made of sums; got {type(self.criterion).__name__}. Try: BlobLoss(DiceLoss())"
            )
        if self.criterion.reduction != "mean":
            raise ValueError(
                f"criterion must be a mean; got reduction={self.criterion.reduction!r}. Try: reduction='mean'"
            )
        self.weight_global = number("weight_global", weight_global)
        self.weight_blob = number("weight_blob", weight_blob)
        self.masking = one_of("masking", masking, ("exclude", "zero_logit"))

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        instances: Tensor | None = None,
        return_terms: bool = False,
        **call: Any,
    ) -> Any:
        """As :meth:`Loss.forward`; ``instances`` is a label map shaped like ``weight_map`` may be."""
        terms: dict[str, Tensor] = {}
        value = self.run(input, target, **call, instances=instances, terms=terms)
        return (value, {name: term.to(value.dtype) for name, term in terms.items()}) if return_terms else value

    def explanation(self, input: Tensor, target: Tensor) -> str:
        x, g = self.check(input, target, None, None)
        kernels = op.backend(x.input, g, Plan(())).__name__.split(".")[-2]
        whole = "" if g.shape[1] == 1 else "; the criterion on all classes is a call of its own"
        return f"mode {g.mode}, {g.activation}; pixel_stats on {kernels}: one pass for the sums of all blobs{whole}"

    def compute(
        self,
        x: Tensors,
        g: Geometry,
        *,
        instances: Tensor | None = None,
        terms: dict[str, Tensor] | None = None,
        **more: Any,
    ) -> Tensor:
        """Also fills ``terms``."""
        if instances is not None:
            instances = op.check(x.input, x.target, mode=g.mode, distance_map=instances)[0].distance
        first = int(self.leaves_out_background(g))
        self._configure(background=not first)
        masks = one_hot(target_masks(x, g, wait=True), g)[:, first:]
        pixels, own = self._binary(x, g, masks, first)
        rows, axes = own.shape[0], len(g.spatial)
        found = connected_components(masks, axes) if instances is None else _renumber(instances, masks, g, first)
        found = found.reshape(rows, *g.spatial)
        row = torch.arange(rows, dtype=torch.int32, device=found.device).reshape(-1, *[1] * axes)
        count = int(found.max()) if found.numel() else 0
        segments = Segments(torch.where(found > 0, found + (rows - 1), row).contiguous(), rows + count)
        owner = torch.zeros(count + 1, dtype=torch.long, device=found.device)
        owner = owner.index_put_((found.long(),), row.long().expand_as(found))[1:]

        one = replace(own, shape=(1, *own.shape[1:]), map_shape=(1, *own.map_shape[1:]))  # a blob is a batch of its own
        alone = self._alone()
        plan = alone.formula_for(one).plan
        plan = Plan([*plan.moments, *((term, part) for term in plan.terms for part in (0, 1)), "n", "count"])
        sums = op.sums(pixels, own, plan, segments)
        background, blobs = sums[:, :rows, 0], sums[:, rows:, 0]
        each = blobs + background[:, owner]
        if self.masking == "zero_logit":
            each = each + self._elsewhere(blobs.detach(), owner, rows, plan, own)

        def criterion(sums: Tensor) -> Tensor:
            value: Tensor = alone.value(tensor_stats(sums.reshape(-1, 1, 1), plan, one))
            return value

        values = torch.vmap(criterion)(each.T) if count else each.new_zeros(0)
        number_of = torch.bincount(owner, minlength=rows)
        means = each.new_zeros(rows).index_add(0, owner, values) / number_of.clamp(min=1)
        v = (number_of > 0).to(means.dtype)
        if self.class_weight is not None:
            v = v * v.new_tensor(self.class_weight[first:]).repeat(g.shape[0])
        blob = (v * means).sum()
        if self.reduction == "mean":
            blob = blob / torch.where(v.any(), v.sum(), 1)
        if g.shape[1] == 1:
            whole = background.index_add(1, owner, blobs)[..., None]
            whole = self.criterion.value(tensor_stats(whole, plan, own))
        else:
            whole = self.criterion(x.input, x.target, weight_map=x.weight, mask=x.mask)
        if terms is not None:
            terms.update({"global": whole.detach(), "blob": blob.detach()})
        return self.weight_global * whole + self.weight_blob * blob

    def _configure(self, background: bool) -> None:
        """The criterion reads the logits as this loss does."""
        names = ("mode", "from_logits", "ignore_index", "class_weight", "reduction")
        _set(self.criterion, {**{name: getattr(self, name) for name in names}, "include_background": background})

    _copy: tuple[Any, Loss | None] = (None, None)  # of which criterion, and the copy

    def _alone(self) -> Loss:
        """The criterion for one blob of one class, with the same parameters."""
        key, alone = self._copy
        now = self.criterion.compiled_name, self.criterion._state()
        if alone is None or key != now:
            alone = copy.deepcopy(self.criterion, {id(p): p for p in self.criterion.parameters()})
            _set(alone, {"mode": "binary", "class_weight": None, "include_background": True, "reduction": "mean"})
            self.__dict__["_copy"] = (now, alone)
        return alone

    def _binary(self, x: Tensors, g: Geometry, masks: Tensor, first: int) -> tuple[Tensors, Geometry]:
        """Every (sample, class) as a sample of its own."""
        rows = (g.shape[0] * masks.shape[1], 1, *g.spatial)

        def each(t: Tensor) -> Tensor:
            return per_class(t, g)[:, first:].reshape(rows)

        z, target, ignored = x.input.reshape(g.shape), x.target, g.ignore_index
        mask = None if x.mask is None else each(x.mask)
        if g.exclusive:
            target, ignored, mask = torch.where(valid(x, g), masks, 255).to(torch.uint8), 255, None
        if g.activation == "softmax":
            z = torch.where(valid(x, g), z, 0)  # what lies under an ignored pixel goes nowhere
            z = torch.softmax(z, 1, dtype=torch.float64 if z.dtype == torch.float64 else torch.float32)
        return op.check(
            each(z),
            target.reshape(rows) if g.exclusive else each(target),
            mode="binary",
            from_logits=g.activation == "sigmoid",
            ignore_index=ignored,
            weight_map=None if x.weight is None else each(x.weight),
            mask=mask,
        )

    def _elsewhere(self, blobs: Tensor, owner: Tensor, rows: int, plan: Plan, own: Geometry) -> Tensor:
        """What the other blobs of the same sample add to the sums of a blob as background of logit 0."""
        pixel = replace(own, shape=(1, 1, 1), map_shape=(1, 1, 1))
        z = blobs.new_full((1, 1, 1), 0.5 if own.activation == "identity" else 0.0)
        unit = op.forward(Tensors(z, torch.zeros_like(z), None, None), pixel, plan).reshape(-1, 1)

        def others(name: str) -> Tensor:
            area = blobs[plan.row(name)]
            return blobs.new_zeros(rows).index_add(0, owner, area)[owner] - area

        plain = torch.tensor([name in ("count", "true_count") for name in plan.moments] + [False] * 2 * len(plan.terms))
        return unit * torch.where(plain.to(unit.device)[:, None], others("count"), others("n"))


def _set(criterion: Loss, options: dict[str, Any]) -> None:
    for part in criterion.modules():
        for name, value in options.items():
            if isinstance(part, Loss) and getattr(part, name) != value:
                setattr(part, name, value)


def _renumber(instances: Tensor, masks: Tensor, g: Geometry, first: int) -> Tensor:
    """Instance numbers 1, 2, ... that no two (sample, class) share; 0 outside of the masks."""
    inside = torch.where(masks, per_class(instances, g)[:, first:].to(torch.int64), 0)
    rows = inside.shape[0] * inside.shape[1]
    row = torch.arange(rows, device=inside.device).reshape(*inside.shape[:2], *[1] * len(g.spatial)).expand_as(inside)
    pairs = torch.stack((row[inside > 0], inside[inside > 0]))
    _, number = torch.unique(pairs, dim=1, return_inverse=True)
    return torch.zeros_like(inside, dtype=torch.int32).masked_scatter_(inside > 0, (number + 1).to(torch.int32))
