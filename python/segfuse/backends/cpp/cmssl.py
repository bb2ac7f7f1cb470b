"""cmssl on the CPU: e in a sweep, the sums in a second look, the gradient in one more sweep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _cpp
from ...ops.cmssl import SCOPES, Cmssl
from ...ops.pixel_stats import Geometry, Tensors
from .._layout import Buffers, computed, pointers
from .local_moments import gradient_without, window_pass
from .pixel_stats import refuses as refuses


def _settings(x: Tensors, g: Geometry, o: Cmssl, grad: Tensor | None, buffers: Buffers) -> dict[str, Any]:
    return {
        "layout": window_pass(x, g, o.window, o.first_class, grad),
        "inputs": pointers(x),
        "threads": torch.get_num_threads(),
        "buffers": buffers.addresses,
        "c4": o.c4,
        "variance_eps": o.variance_eps,
    }


def forward(x: Tensors, g: Geometry, o: Cmssl) -> tuple[Tensor, Tensor, int]:
    """Sums ``(2, N, C)``, the thresholds ``(N, C)`` of e and the number of targets and weights out of range."""
    sums = torch.empty((2, *g.shape[:2]), dtype=torch.float64, device="cpu")
    threshold = torch.empty(g.shape[:2], dtype=torch.float64, device="cpu")
    error = (torch.zeros if o.window.valid else torch.empty)(g.shape, dtype=computed(x.input), device="cpu")
    buffers = Buffers(x, g, entropy=True, backward=False)
    invalid = _cpp.cmssl_forward(
        **_settings(x, g, o, None, buffers),
        beta=o.cut,
        scope=SCOPES.index(o.scope),
        error=error.data_ptr(),
        threshold=threshold.data_ptr(),
        sums=sums.data_ptr(),
    )
    return sums, threshold, invalid


def backward(x: Tensors, g: Geometry, o: Cmssl, threshold: Tensor, coefficient: Tensor) -> Tensor:
    grad = gradient_without(x, g, o.first_class)
    buffers = Buffers(x, g, entropy=True, backward=True)
    _cpp.cmssl_backward(
        **_settings(x, g, o, grad, buffers),
        detach=o.detach,
        threshold=threshold.data_ptr(),
        coefficient=coefficient.data_ptr(),
        grad_input=grad.data_ptr(),
    )
    return grad
