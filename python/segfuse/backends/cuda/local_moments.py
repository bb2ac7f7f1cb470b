"""local_moments on a GPU, and what the fused losses on windows pass to their kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _cuda
from ...ops.local_moments import Window
from ...ops.pixel_stats import Geometry, Tensors
from .._layout import address, computed, describe_moments, describe_windows, moments_shape, without_background
from ._device import refuses as refuses
from ._device import where, workspace


def forward(a: Tensor, b: Tensor | None, window: Window) -> tuple[Tensor, ...]:
    shape = moments_shape(a, window)
    rows = tuple(torch.empty(shape, dtype=computed(a), device=a.device) for _ in range(2 if b is None else 5))
    layout, images = _cuda.MomentsPass(**describe_moments(a, b, window)), 1 if b is None else 2
    room = workspace(_cuda.local_moments_workspace(layout=layout, images=images, gradient=False), a)
    _cuda.local_moments_forward(
        where=where(a),
        layout=layout,
        a=a.data_ptr(),
        b=address(b),
        rows=[row.data_ptr() for row in rows] + [0] * (5 - len(rows)),
        workspace=room.data_ptr(),
    )
    return rows


def backward(
    a: Tensor, b: Tensor | None, window: Window, grads: Sequence[Tensor | None], needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    rows = [None if grad is None else grad.contiguous() for grad in grads] + [None] * (5 - len(grads))

    def gradient(first: Tensor, second: Tensor | None, order: Sequence[int]) -> Tensor:
        grad = torch.empty_like(first)
        layout, images = _cuda.MomentsPass(**describe_moments(first, second, window, grad)), 1 if second is None else 2
        room = workspace(_cuda.local_moments_workspace(layout=layout, images=images, gradient=True), first)
        _cuda.local_moments_backward(
            where=where(first),
            layout=layout,
            a=first.data_ptr(),
            b=address(second),
            grad_a=grad.data_ptr(),
            rows=[address(rows[i]) for i in order],
            workspace=room.data_ptr(),
        )
        return grad

    return (
        gradient(a, b, (0, 1, 2, 3, 4)) if needs[0] else None,
        gradient(b, a, (2, 3, 0, 1, 4)) if needs[1] and b is not None else None,
    )


def window_pass(
    x: Tensors, g: Geometry, window: Window, first_class: int, output: Tensor | None = None
) -> _cuda.WindowPass:
    """Everything about a fused loss on windows but its pointers and numbers."""
    return _cuda.WindowPass(**describe_windows(x, g, window, first_class, output))


def gradient_without(x: Tensors, g: Geometry, first_class: int) -> Tensor:
    """Memory for the gradient, 0 for the classes that are left out."""
    return without_background(torch.empty_like(x.input), g, first_class)
