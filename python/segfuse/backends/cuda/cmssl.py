"""cmssl on a GPU: e in a march, the sums in a second look, the gradient in two more marches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _cuda
from ...ops.cmssl import SCOPES, Cmssl
from ...ops.pixel_stats import Geometry, Tensors
from .._layout import Buffers, computed, pointers
from ._device import refuses as refuses
from ._device import where, workspace
from .local_moments import gradient_without, window_pass
from .pixel_stats import invalid


def _settings(
    x: Tensors, layout: _cuda.WindowPass, o: Cmssl, buffers: Buffers, threshold: Tensor, room: Tensor
) -> dict[str, Any]:
    return {
        "where": where(x.input),
        "layout": layout,
        "inputs": pointers(x),
        "buffers": buffers.addresses,
        "c4": o.c4,
        "variance_eps": o.variance_eps,
        "threshold": threshold.data_ptr(),
        "workspace": room.data_ptr(),
    }


def forward(x: Tensors, g: Geometry, o: Cmssl) -> tuple[Tensor, Tensor, int]:
    """Sums ``(2, N, C)``, NaN for a group with targets or weights out of range; the thresholds ``(N, C)`` of e; and
    the number of such targets and weights, only for debugging."""
    device = x.input.device
    sums = torch.empty((2, *g.shape[:2]), dtype=torch.float64, device=device)
    threshold = torch.empty(g.shape[:2], dtype=torch.float64, device=device)
    error = torch.empty(g.shape, dtype=computed(x.input), device=device)
    buffers = Buffers(x, g, entropy=True, backward=False)
    layout = window_pass(x, g, o.window, o.first_class)
    room = workspace(_cuda.cmssl_workspace(layout=layout, gradient=False, detach=o.detach), x.input)
    _cuda.cmssl_forward(
        **_settings(x, layout, o, buffers, threshold, room),
        beta=o.cut,
        scope=SCOPES.index(o.scope),
        error=error.data_ptr(),
        sums=sums.data_ptr(),
    )
    return sums, threshold, invalid(x, g)


def backward(x: Tensors, g: Geometry, o: Cmssl, threshold: Tensor, coefficient: Tensor) -> Tensor:
    grad = gradient_without(x, g, o.first_class)
    buffers = Buffers(x, g, entropy=True, backward=True)
    layout = window_pass(x, g, o.window, o.first_class, grad)
    room = workspace(_cuda.cmssl_workspace(layout=layout, gradient=True, detach=o.detach), x.input)
    _cuda.cmssl_backward(
        **_settings(x, layout, o, buffers, threshold, room),
        detach=o.detach,
        coefficient=coefficient.data_ptr(),
        grad_input=grad.data_ptr(),
    )
    return grad
