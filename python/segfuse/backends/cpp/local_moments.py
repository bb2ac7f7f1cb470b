"""local_moments on the CPU, and what the fused losses on windows pass to their kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _cpp
from ...ops.local_moments import Window
from ...ops.pixel_stats import Geometry, Tensors
from .._layout import address, computed, describe_moments, describe_windows, moments_shape, without_background
from .pixel_stats import empty_gradient
from .pixel_stats import refuses as refuses


def forward(a: Tensor, b: Tensor | None, window: Window) -> tuple[Tensor, ...]:
    rows = tuple(
        torch.empty(moments_shape(a, window), dtype=computed(a), device="cpu") for _ in range(2 if b is None else 5)
    )
    _cpp.local_moments_forward(
        layout=_cpp.MomentsPass(**describe_moments(a, b, window)),
        a=a.data_ptr(),
        b=address(b),
        rows=[row.data_ptr() for row in rows] + [0] * (5 - len(rows)),
        threads=torch.get_num_threads(),
    )
    return rows


def backward(
    a: Tensor, b: Tensor | None, window: Window, grads: Sequence[Tensor | None], needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    rows = [None if grad is None else grad.contiguous() for grad in grads] + [None] * (5 - len(grads))

    def gradient(first: Tensor, second: Tensor | None, order: Sequence[int]) -> Tensor:
        grad = empty_gradient(first)
        _cpp.local_moments_backward(
            layout=_cpp.MomentsPass(**describe_moments(first, second, window, grad)),
            a=first.data_ptr(),
            b=address(second),
            grad_a=grad.data_ptr(),
            rows=[address(rows[i]) for i in order],
            threads=torch.get_num_threads(),
        )
        return grad

    return (
        gradient(a, b, (0, 1, 2, 3, 4)) if needs[0] else None,
        gradient(b, a, (2, 3, 0, 1, 4)) if needs[1] and b is not None else None,
    )


def window_pass(
    x: Tensors, g: Geometry, window: Window, first_class: int, output: Tensor | None = None
) -> _cpp.WindowPass:
    """Everything about a fused loss on windows but its pointers and numbers."""
    return _cpp.WindowPass(**describe_windows(x, g, window, first_class, output))


def gradient_without(x: Tensors, g: Geometry, first_class: int) -> Tensor:
    """Memory for the gradient, 0 for the classes that are left out."""
    return without_background(empty_gradient(x.input), g, first_class)
