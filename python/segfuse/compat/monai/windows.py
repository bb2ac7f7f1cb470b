"""Losses that look at the neighbourhood of a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from ...losses.structural_similarity import SSIMLoss as _SSIM
from ...ops.local_moments import local_moments
from ...ops.pixel_stats import NEVER
from .._adapter import (
    Call,
    Explained,
    Reading,
    bare,
    by_torch_because,
    cross_entropy,
    floating,
    numbers,
    one_hot,
    record,
    value,
)
from ._reading import _reduction
from .dice import _finish, _option


class NACLLoss(Explained, _Loss):
    """``monai.losses.NACLLoss``: cross-entropy, and logits near the class shares of the neighbourhood."""

    def __init__(
        self,
        classes: int,
        dim: int,
        kernel_size: int = 3,
        kernel_ops: str = "mean",
        distance_type: str = "l1",
        alpha: float = 0.1,
        sigma: float = 1.0,
    ) -> None:
        super().__init__()
        if kernel_ops not in ("mean", "gaussian"):
            raise ValueError("Kernel ops must be either mean or gaussian")
        if dim not in (2, 3):
            raise ValueError(f"Support 2d and 3d, got dim={dim}.")
        if distance_type not in ("l1", "l2"):
            raise ValueError(f"Distance type must be either L1 or L2, got {distance_type}")
        self.nc = classes
        self.dim = dim
        self.cross_entropy = nn.CrossEntropyLoss()
        self.distance_type = distance_type
        self.alpha = alpha
        self.ks = kernel_size
        self.kernel_ops, self.sigma = kernel_ops, sigma

    def get_constr_target(self, mask: Tensor) -> Tensor:
        """Shares of the classes around every pixel, ``(N, C, *spatial)``."""
        hot = one_hot(mask.long(), self.nc).float()
        if self.kernel_ops == "mean":
            weights = torch.full((self.ks,), 1 / self.ks)
        else:
            weights = _integrated_gaussian(float(self.sigma))
        return _filter(hot, weights)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        inputs, targets = floating(bare(inputs)), bare(targets)
        weight = numbers(self.cross_entropy.weight)
        entropy = value(Call(inputs, targets, Reading("multiclass", ignore_index=-100)), cross_entropy, weight=weight)
        away = self.get_constr_target(targets) - inputs
        return entropy + self.alpha * (away.abs() if self.distance_type == "l1" else away**2).mean()


def _integrated_gaussian(sigma: float, cut: float = 4.0) -> Tensor:
    """A Gaussian over the width of every pixel, up to ``cut`` standard deviations; not normalised."""
    radius = int(max(sigma * cut, 0.5) + 0.5)
    edges = (torch.arange(-radius, radius + 2, dtype=torch.float64) - 0.5) / (sigma * 2**0.5)
    return torch.erf(edges).diff().mul(0.5).clamp(min=0).float()


def _filter(x: Tensor, weights: Tensor) -> Tensor:
    """The same odd window along every spatial axis, with zeros outside the image."""
    axes = x.ndim - 2
    conv: Any = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    channels = x.shape[1]
    for axis in range(axes):
        shape, padding = [1] * axes, [0] * axes
        shape[axis], padding[axis] = len(weights), len(weights) // 2
        kernel = weights.to(x).reshape(1, 1, *shape).expand(channels, 1, *shape)
        x = conv(x, kernel, padding=padding, groups=channels)
    return x


class SSIMLoss(Explained, _Loss):
    """``monai.losses.SSIMLoss``."""

    def __init__(
        self,
        spatial_dims: int,
        data_range: float = 1.0,
        kernel_type: str = "gaussian",
        win_size: int | Sequence[int] = 11,
        kernel_sigma: float | Sequence[float] = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        self.spatial_dims = spatial_dims
        self._data_range = data_range
        self.kernel_type = kernel_type
        self.kernel_size = win_size if isinstance(win_size, Sequence) else (win_size,) * spatial_dims
        self.kernel_sigma = kernel_sigma if isinstance(kernel_sigma, Sequence) else (kernel_sigma,) * spatial_dims
        self.k1 = k1
        self.k2 = k2

    @property
    def data_range(self) -> float:
        return self._data_range

    @data_range.setter
    def data_range(self, value: float) -> None:
        self._data_range = value

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if input.shape != target.shape:
            raise ValueError(f"y_pred and y should have same shapes, got {input.shape} and {target.shape}.")
        if input.ndim - 2 != self.spatial_dims:
            raise ValueError(
                f"input should have {self.spatial_dims + 2} dimensions (batch, channel, {self.spatial_dims} spatial "
                f"axes); got {input.ndim}"
            )
        return _finish(_ssim_loss(self, bare(input).float(), bare(target).float()), _reduction(self.reduction))


def _ssim_loss(self: Any, input: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM of every sample, ``(N, 1)``."""
    uniform = str(getattr(self.kernel_type, "value", self.kernel_type)) == "uniform"
    window: dict[str, Any] = {
        "window": tuple(self.kernel_size),
        "sigma": tuple(float(v) for v in self.kernel_sigma),
        "kernel": "box" if uniform else "gaussian",
        "padding": "valid",
    }
    if by_torch_because(input, target) is None:
        loss = _ssim(tuple(window.items()), float(self._data_range), self.k1, self.k2)
        with suppress(ValueError):  # a target beyond 0 to 1
            per_channel: Tensor = loss(input, target)
            record(loss, Call(input, target, Reading("multilabel")))
            return per_channel.mean(1, keepdim=True)
    record("local_moments of two images")
    m = local_moments(input, target, **window)
    assert m.mean_b is not None and m.var_b is not None and m.cov is not None
    c1, c2 = ((k * self._data_range) ** 2 for k in (self.k1, self.k2))
    similarity = ((2 * m.mean_a * m.mean_b + c1) / (m.mean_a**2 + m.mean_b**2 + c1)) * (
        (2 * m.cov + c2) / (m.var_a + m.var_b + c2)
    )
    return 1 - similarity.flatten(1).mean(1, keepdim=True)


@lru_cache(maxsize=32)
def _ssim(window: tuple[tuple[str, Any], ...], data_range: float, k1: float, k2: float) -> _SSIM:
    return _SSIM(
        mode="multilabel",
        from_logits=False,
        reduction="none",
        ignore_index=NEVER,
        data_range=data_range,
        k1=k1,
        k2=k2,
        **dict(window),
    )


_WINDOWS = {
    "rectangular": lambda n: torch.ones(n),
    "triangular": lambda n: _triangle(n),
    "gaussian": lambda n: torch.exp(-0.5 * (torch.arange(-(n // 2), n // 2 + 1) / (n / 3)) ** 2),
}


def _triangle(size: int) -> Tensor:
    """A box with itself: of half the length, rounded up to an odd number, with zeros up to ``size``."""
    half = (size + 1) // 2
    half -= half % 2 == 0
    box = torch.ones((1, 1, half)) / half
    return F.conv1d(box, box, padding=(size - half) // 2 + half // 2).reshape(-1)


class LocalNormalizedCrossCorrelationLoss(Explained, _Loss):
    """``monai.losses.LocalNormalizedCrossCorrelationLoss``, in torch operations."""

    kernel: Tensor
    kernel_vol: Tensor

    def __init__(
        self,
        spatial_dims: int = 3,
        kernel_size: int = 3,
        kernel_type: str = "rectangular",
        reduction: str = "mean",
        smooth_nr: float = 0.0,
        smooth_dr: float = 1e-5,
    ) -> None:
        super().__init__(reduction=_reduction(reduction))
        self.ndim = spatial_dims
        if self.ndim not in (1, 2, 3):
            raise ValueError(f"Unsupported ndim: {self.ndim}-d, only 1-d, 2-d, and 3-d inputs are supported")
        self.kernel_size = kernel_size
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        weights = _WINDOWS[_option("kernel_type", kernel_type, tuple(_WINDOWS))](kernel_size)
        self.register_buffer("kernel", weights, persistent=False)
        self.register_buffer("kernel_vol", weights.sum() ** spatial_dims, persistent=False)
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        pred, target = bare(pred), bare(target)
        if pred.ndim - 2 != self.ndim:
            raise ValueError(f"expecting pred with {self.ndim} spatial dimensions, got pred of shape {pred.shape}")
        if target.shape != pred.shape:
            raise ValueError(f"ground truth has differing shape ({target.shape}) from pred ({pred.shape})")
        target = target.to(pred.dtype)
        sums = (_filter(x, self.kernel) for x in (target, pred, target * target, pred * pred, target * pred))
        t, p, tt, pp, tp = sums
        size = self.kernel_vol.to(pred)
        cross = tp - p * t / size
        variances = ((square - mean * mean / size).clamp(min=self.smooth_dr) for square, mean in ((tt, t), (pp, p)))
        t_var, p_var = variances
        return -_finish((cross * cross + self.smooth_nr) / (t_var * p_var), _reduction(self.reduction))
