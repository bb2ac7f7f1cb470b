"""Losses around a loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from ...losses.deep_supervision import nearest
from .._adapter import (
    Explained,
    warn,
)
from ._reading import _reduction
from .dice import _check_mask, _finish
from .windows import _filter


class DeepSupervisionLoss(Explained, _Loss):
    """``monai.losses.DeepSupervisionLoss``: one target for a list of outputs, resized to each."""

    def __init__(self, loss: _Loss, weight_mode: str = "exp", weights: list[float] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.weight_mode = weight_mode
        self.weights = weights
        self.interp_mode = "nearest-exact"

    def get_weights(self, levels: int = 1) -> list[float]:
        """One for each output."""
        levels = max(1, levels)
        if self.weights is not None and len(self.weights) >= levels:
            return self.weights[:levels]
        of = {"exp": lambda level: max(0.5**level, 0.0625), "two": lambda level: 0.5 if level else 1.0}
        return [of.get(self.weight_mode, lambda level: 1.0)(level) for level in range(levels)]

    def get_loss(self, input: Tensor, target: Tensor) -> Tensor:
        """Of one output."""
        if input.shape[2:] != target.shape[2:]:
            target = nearest(target, input.shape[2:], exact=self.interp_mode == "nearest-exact")
        loss: Tensor = self.loss(input, target)
        return loss

    def forward(self, input: Tensor | list[Tensor] | None, target: Tensor) -> Tensor:
        if isinstance(input, list | tuple):
            weights = self.get_weights(levels=len(input))
            value = torch.tensor(0.0, device=target.device)
            for weight, x in zip(weights, input, strict=True):
                value = value + weight * DeepSupervisionLoss.get_loss(self, x.float(), target)
            return value
        if input is None:
            raise ValueError("input shouldn't be None.")
        loss: Tensor = self.loss(input.float(), target)
        return loss


class MaskedLoss(Explained, _Loss):
    """``monai.losses.MaskedLoss``: prediction and target times a mask, before the loss."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor] | _Loss, *loss_args: Any, **loss_kwargs: Any) -> None:
        super().__init__()
        self.loss: Any = loss(*loss_args, **loss_kwargs) if inspect.isclass(loss) else loss
        if not callable(self.loss):
            raise ValueError("The loss function is not callable.")

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            warn("No mask value specified for the MaskedLoss.")
            return self.loss(input, target)
        _check_mask(input, target, mask)
        return self.loss(input * mask, target * mask)


def _smoothing_gaussian(sigma: float) -> Tensor:
    """Sampled at the pixels within three standard deviations; not normalised to their sum."""
    radius = int(max(sigma * 3, 0.5) + 0.5)
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    return torch.exp(-0.5 * (x / sigma) ** 2) / (sigma * (2 * math.pi) ** 0.5)


def _smoothing_cauchy(sigma: float) -> Tensor:
    radius = int(sigma * 5)
    k = 1 / ((torch.arange(-radius, radius + 1, dtype=torch.float32) / sigma) ** 2 + 1)
    return k / k.sum()


_SMOOTHINGS = {"gaussian": _smoothing_gaussian, "cauchy": _smoothing_cauchy}


class MultiScaleLoss(Explained, _Loss):
    """``monai.losses.MultiScaleLoss``: a loss of two images smoothed at several scales."""

    def __init__(
        self, loss: _Loss, scales: list[float] | None = None, kernel: str = "gaussian", reduction: str = "mean"
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        if kernel not in _SMOOTHINGS:
            raise ValueError(f"got unsupported kernel type: {kernel}", "only support gaussian and cauchy")
        self.kernel_fn = _SMOOTHINGS[kernel]
        self.loss = loss
        self.scales = scales

    def forward(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if self.scales is None:
            return _finish(self.loss(y_pred, y_true), _reduction(self.reduction))
        found = []
        for scale in self.scales:
            if scale < 0:
                raise ValueError(f"expecting positive sigma, got sigma={scale}")
            if scale == 0:
                found.append(self.loss(y_pred, y_true))
                continue
            weights = self.kernel_fn(scale)
            found.append(self.loss(_filter(y_pred, weights), _filter(y_true, weights)))
        return _finish(torch.stack(found), _reduction(self.reduction))
