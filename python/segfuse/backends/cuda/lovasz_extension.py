"""lovasz_extension on a GPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cuda
from ...ops.lovasz_extension import Problems, classes_at_a_time
from ...ops.pixel_stats import Geometry, Plan, Tensors
from .._layout import pointers
from ..reference import lovasz_extension as reference
from ._device import DEBUG, where, workspace
from ._device import refuses as refuses
from .pixel_stats import layout

_NO_SUMS = Plan(())


def forward(x: Tensors, g: Geometry, how: Problems) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """Losses and pixels of every class ``(P, C)``, slopes ``(N, C, S)`` and the number of targets out of range.

    Slopes are float32 (float64 for float64 logits), twice the bytes of half logits. Where none are kept there are none.
    A target out of range makes the losses and slopes of its problem NaN; it is counted only for debugging.
    """
    device, call = x.input.device, layout(x, g, _NO_SUMS)
    value, positives = torch.empty((2, *how.count(g)), dtype=torch.float64, device=device)
    dtype = torch.float64 if x.input.dtype == torch.float64 else torch.float32
    classes = classes_at_a_time(g.shape[1], how)
    slope = torch.empty((g.shape[0], classes, g.pixels), dtype=dtype, device=device)
    bytes_ = _cuda.lovasz_extension_workspace(
        layout=call, per_image=how.per_image, keep_slopes=how.keep_slopes, classes=classes
    )
    room = workspace(bytes_, x.input)
    _cuda.lovasz_extension_forward(
        where=where(x.input),
        layout=call,
        hinge=how.hinge,
        per_image=how.per_image,
        present=how.present,
        wanted=bytes(how.wanted),
        keep_slopes=how.keep_slopes,
        classes=classes,
        inputs=pointers(x),
        slope=slope.data_ptr(),
        value=value.data_ptr(),
        positives=positives.data_ptr(),
        workspace=room.data_ptr(),
    )
    invalid = reference.invalid(reference.pixels(x, g)) if DEBUG else 0
    return value, positives, slope if how.keep_slopes else None, invalid


def backward(x: Tensors, g: Geometry, how: Problems, slope: Tensor, coefficient: Tensor) -> Tensor:
    """The gradient of the input, in place of the slopes where it is stored like them."""
    in_place = x.input.is_contiguous() and x.input.dtype == slope.dtype
    grad = slope.reshape(x.input.shape) if in_place else torch.empty_like(x.input)
    _cuda.lovasz_extension_backward(
        where=where(x.input),
        layout=layout(x, g, _NO_SUMS, grad),
        hinge=how.hinge,
        per_image=how.per_image,
        inputs=pointers(x),
        slope=slope.data_ptr(),
        grad_input=grad.data_ptr(),
        coefficient=coefficient.data_ptr(),
    )
    return grad
