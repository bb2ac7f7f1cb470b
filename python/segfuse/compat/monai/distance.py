"""Hausdorff and boundary losses on the native distance transform."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...losses.boundary import BoundaryLoss as _Boundary
from ...losses.hausdorff import HausdorffDTLoss as _HausdorffDT
from ...ops.distance_transform_edt import distance_transform_edt
from .._adapter import (
    Reading,
    Sums,
    by_torch_because,
    record,
)
from ._reading import _Read, _read, _reduction, _Segmentation
from .dice import _finish


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
