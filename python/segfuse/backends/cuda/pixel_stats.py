"""pixel_stats on a GPU: allocate the outputs, pass the pointers.

Sums over segments, and more classes than shared memory holds, are left to the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cuda
from ...ops.pixel_stats import Geometry, Plan, Segments, Tensors
from .._layout import describe, pointers
from ..reference import pixel_stats as reference
from ._device import DEBUG, where, workspace
from ._device import refuses as refuses


def layout(
    x: Tensors, g: Geometry, plan: Plan, output: Tensor | None = None, upstream: Tensor | None = None
) -> _cuda.Pass:
    """Everything about a call but its pointers."""
    return _cuda.Pass(**describe(x, g, plan, output, upstream))


def invalid(x: Tensors, g: Geometry) -> int:
    """The number of targets and weights out of range, looked up only for debugging: kernels answer with NaN."""
    return reference.pixels(x, g).invalid if DEBUG else 0


def forward(x: Tensors, g: Geometry, plan: Plan, segments: Segments | None = None) -> tuple[Tensor, int]:
    """Sums ``(K, N, C)`` or ``(K, groups, 1)``, NaN for a sample with targets or weights out of range."""
    call = layout(x, g, plan)
    bytes = _cuda.pixel_stats_workspace(layout=call)
    if segments is not None or bytes < 0:
        return reference.forward(x, g, plan, segments)
    room = workspace(bytes, x.input)
    sums = torch.empty((plan.rows, *g.shape[:2]), dtype=torch.float64, device=x.input.device)
    _cuda.pixel_stats_forward(
        where=where(x.input),
        layout=call,
        inputs=pointers(x),
        sums=sums.data_ptr(),
        workspace=room.data_ptr(),
    )
    return sums, invalid(x, g)


def backward(
    x: Tensors,
    g: Geometry,
    plan: Plan,
    coefficient: Tensor,
    upstream: Tensor | None = None,
    segments: Segments | None = None,
) -> Tensor:
    grad = torch.empty_like(x.input)
    call = layout(x, g, plan, grad, upstream)
    if segments is not None or _cuda.pixel_stats_workspace(layout=call) < 0:
        return reference.backward(x, g, plan, coefficient, upstream, segments)
    _cuda.pixel_stats_backward(
        where=where(x.input),
        layout=call,
        inputs=pointers(x),
        grad_input=grad.data_ptr(),
        upstream=0 if upstream is None else upstream.data_ptr(),
        coefficient=coefficient.data_ptr(),
    )
    return grad


def loss_map(x: Tensors, g: Geometry, plan: Plan, coefficient: Tensor) -> tuple[Tensor, int]:
    """The loss of every pixel, NaN where its target or weight is out of range."""
    dtype = torch.float64 if x.input.dtype == torch.float64 else torch.float32
    out = torch.empty(g.map_shape, dtype=dtype, device=x.input.device)
    call = layout(x, g, plan, out)
    if _cuda.pixel_stats_workspace(layout=call) < 0:
        return reference.loss_map(x, g, plan, coefficient)
    _cuda.pixel_stats_map(
        where=where(x.input),
        layout=call,
        inputs=pointers(x),
        loss_map=out.data_ptr(),
        coefficient=coefficient.data_ptr(),
    )
    return out, invalid(x, g)
