"""lovasz_extension on the CPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops.lovasz_extension import Problems, classes_at_a_time
from ...ops.pixel_stats import Geometry, Plan, Tensors
from .pixel_stats import empty_gradient, huge_pages, layout
from .pixel_stats import refuses as refuses

_NO_SUMS = Plan(())


def forward(x: Tensors, g: Geometry, how: Problems) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """Losses and pixels of every class ``(P, C)``, slopes ``(N, C, S)`` and the number of targets out of range.

    Slopes are float32 (float64 for float64 logits), twice the bytes of half logits. Where none are kept there are none.
    """
    value, positives = torch.empty((2, *how.count(g)), dtype=torch.float64, device="cpu")
    dtype = torch.float64 if x.input.dtype == torch.float64 else torch.float32
    classes = classes_at_a_time(g.shape[1], how)
    slope = huge_pages(torch.empty((g.shape[0], classes, g.pixels), dtype=dtype, device="cpu"))
    invalid = _cpp.lovasz_extension_forward(
        layout=layout(x, g, _NO_SUMS),
        hinge=how.hinge,
        per_image=how.per_image,
        present=how.present,
        wanted=bytes(how.wanted),
        keep_slopes=how.keep_slopes,
        classes=classes,
        input=x.input.data_ptr(),
        target=x.target.data_ptr(),
        mask=0 if x.mask is None else x.mask.data_ptr(),
        slope=slope.data_ptr(),
        value=value.data_ptr(),
        positives=positives.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return value, positives, slope if how.keep_slopes else None, invalid


def backward(x: Tensors, g: Geometry, how: Problems, slope: Tensor, coefficient: Tensor) -> Tensor:
    """The gradient of the input, in place of the slopes where it is stored like them."""
    in_place = x.input.is_contiguous() and x.input.dtype == slope.dtype
    grad = slope.reshape(x.input.shape) if in_place else empty_gradient(x.input)
    _cpp.lovasz_extension_backward(
        layout=layout(x, g, _NO_SUMS, grad),
        hinge=how.hinge,
        per_image=how.per_image,
        input=x.input.data_ptr(),
        slope=slope.data_ptr(),
        grad_input=grad.data_ptr(),
        coefficient=coefficient.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return grad
