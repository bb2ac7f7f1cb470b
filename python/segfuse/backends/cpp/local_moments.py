"""local_moments on the CPU, and what the fused losses on windows pass to their kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _cpp
from ...ops.local_moments import Window
from ...ops.pixel_stats import Geometry, Tensors
from .._layout import ACTIVATION, DTYPE, _layout, pointers
from .pixel_stats import empty_gradient
from .pixel_stats import refuses as refuses


def _of(x: Tensor | None) -> tuple[int, tuple[int, ...]] | None:
    return None if x is None else (DTYPE[x.dtype], x.stride())


def _pass(a: Tensor, b: Tensor | None, window: Window, output: Tensor | None = None) -> _cpp.MomentsPass:
    return _cpp.MomentsPass(
        shape=a.shape, weights=window.weights, valid=window.valid, a=_of(a), b=_of(b), output=_of(output)
    )


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def computed(input: Tensor) -> torch.dtype:
    """The type of computation."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def forward(a: Tensor, b: Tensor | None, window: Window) -> tuple[Tensor, ...]:
    shape = (*a.shape[:2], *window.centres(a.shape[2:]))
    if 0 in a.shape:
        shape = (*a.shape[:2], *(max(0, n) for n in shape[2:]))
    rows = tuple(torch.empty(shape, dtype=computed(a)) for _ in range(2 if b is None else 5))
    _cpp.local_moments_forward(
        layout=_pass(a, b, window),
        a=a.data_ptr(),
        b=_address(b),
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
            layout=_pass(first, second, window, grad),
            a=first.data_ptr(),
            b=_address(second),
            grad_a=grad.data_ptr(),
            rows=[_address(rows[i]) for i in order],
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
    return _cpp.WindowPass(
        shape=g.shape,
        weights=window.weights,
        valid=window.valid,
        activation=ACTIVATION[g.activation],
        exclusive=g.exclusive,
        index_target=g.index_target,
        ignore_index=g.ignore_index,
        first_class=first_class,
        input=_layout(x.input, g),
        target=_layout(x.target, g),
        weight=_layout(x.weight, g),
        mask=_layout(x.mask, g),
        output=_layout(output, g),
    )


class Buffers:
    """Memory in which the classes of a pixel meet: p and -log p of the target class, and with ``backward`` what their
    gradients are. Empty without softmax."""

    def __init__(self, x: Tensors, g: Geometry, entropy: bool, backward: bool) -> None:
        self.held: list[Tensor | None] = [None] * 4
        if g.activation == "softmax":
            pixel = (g.shape[0], *g.spatial)
            for i, shape in enumerate((g.shape, pixel, g.shape, pixel)):
                if (i < 2 or backward) and (i % 2 == 0 or entropy):
                    self.held[i] = torch.empty(shape, dtype=computed(x.input))

    @property
    def addresses(self) -> list[int]:
        return [_address(x) for x in self.held]


def gradient_without(x: Tensors, g: Geometry, first_class: int) -> Tensor:
    """Memory for the gradient, 0 for the classes that are left out: no sweep visits them."""
    grad = empty_gradient(x.input)
    if first_class and g.activation != "softmax":
        grad[:, :first_class] = 0
    return grad


__all__ = ["backward", "forward", "pointers", "refuses"]
