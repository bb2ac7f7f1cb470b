"""ssim on the CPU: one sweep over the image forward, and one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _cpp
from ...ops.pixel_stats import Geometry, Tensors
from ...ops.ssim import Ssim
from .._layout import Buffers, pointers
from .local_moments import gradient_without, window_pass
from .pixel_stats import refuses as refuses


def _settings(x: Tensors, g: Geometry, o: Ssim, grad: Tensor | None, buffers: Buffers) -> dict[str, Any]:
    return {
        "layout": window_pass(x, g, o.window, o.first_class, grad),
        "inputs": pointers(x),
        "threads": torch.get_num_threads(),
        "buffers": buffers.addresses,
        "c1": o.c1,
        "c2": o.c2,
        "contrast": o.contrast,
        "grad_input": 0 if grad is None else grad.data_ptr(),
    }


def forward(x: Tensors, g: Geometry, o: Ssim, ahead: bool) -> tuple[Tensor, int, Tensor | None]:
    """Sums ``(2, N, C)``, the number of targets and weights out of range and, if asked, the gradient of every group by
    its sum."""
    sums = torch.empty((2, *g.shape[:2]), dtype=torch.float64, device="cpu")
    grad = gradient_without(x, g, o.first_class) if ahead else None
    buffers = Buffers(x, g, entropy=False, backward=False)
    invalid = _cpp.ssim_forward(**_settings(x, g, o, grad, buffers), sums=sums.data_ptr())
    return sums, invalid, grad


def backward(x: Tensors, g: Geometry, o: Ssim, coefficient: Tensor) -> Tensor:
    grad = gradient_without(x, g, o.first_class)
    buffers = Buffers(x, g, entropy=False, backward=True)
    _cpp.ssim_backward(**_settings(x, g, o, grad, buffers), coefficient=coefficient.data_ptr())
    return grad
