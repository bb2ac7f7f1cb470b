"""ssim on a GPU: a march over the image forward, and two for a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _cuda
from ...ops.pixel_stats import Geometry, Tensors
from ...ops.ssim import Ssim
from .._layout import Buffers, address, pointers
from ._device import refuses as refuses
from ._device import where, workspace
from .local_moments import gradient_without, window_pass
from .pixel_stats import invalid


def _settings(
    x: Tensors, layout: _cuda.WindowPass, o: Ssim, grad: Tensor | None, buffers: Buffers, room: Tensor
) -> dict[str, Any]:
    return {
        "where": where(x.input),
        "layout": layout,
        "inputs": pointers(x),
        "buffers": buffers.addresses,
        "c1": o.c1,
        "c2": o.c2,
        "contrast": o.contrast,
        "grad_input": address(grad),
        "workspace": room.data_ptr(),
    }


def forward(x: Tensors, g: Geometry, o: Ssim, ahead: bool) -> tuple[Tensor, int, Tensor | None]:
    """Sums ``(2, N, C)``, NaN for a group with targets or weights out of range; their number only for debugging; and,
    if asked, the gradient of every group by its sum."""
    sums = torch.empty((2, *g.shape[:2]), dtype=torch.float64, device=x.input.device)
    grad = gradient_without(x, g, o.first_class) if ahead else None
    buffers = Buffers(x, g, entropy=False, backward=False)
    layout = window_pass(x, g, o.window, o.first_class, grad)
    room = workspace(_cuda.ssim_workspace(layout=layout, gradient=ahead), x.input)
    _cuda.ssim_forward(**_settings(x, layout, o, grad, buffers, room), sums=sums.data_ptr())
    return sums, invalid(x, g), grad


def backward(x: Tensors, g: Geometry, o: Ssim, coefficient: Tensor) -> Tensor:
    grad = gradient_without(x, g, o.first_class)
    buffers = Buffers(x, g, entropy=False, backward=True)
    layout = window_pass(x, g, o.window, o.first_class, grad)
    room = workspace(_cuda.ssim_workspace(layout=layout, gradient=True), x.input)
    _cuda.ssim_backward(**_settings(x, layout, o, grad, buffers, room), coefficient=coefficient.data_ptr())
    return grad
