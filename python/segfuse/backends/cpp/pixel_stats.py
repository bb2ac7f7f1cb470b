"""pixel_stats on the CPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops.pixel_stats import Geometry, Plan, Segments, Tensors
from .._layout import DTYPE as DTYPE
from .._layout import describe
from .._layout import pointers as pointers

HUGE = 8 << 20  # bytes; a larger gradient is fresh memory and gets 2 MiB pages


def refuses(input: Tensor, device: str | None = None) -> str | None:
    device = device or input.device.type
    if device != "cpu":
        return f"it runs on the CPU, the input is on {device}"
    return (
        None
        if input.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        else f"{input.dtype} is not compiled in"
    )


def layout(
    x: Tensors, g: Geometry, plan: Plan, output: Tensor | None = None, upstream: Tensor | None = None
) -> _cpp.Pass:
    """Everything about a call but its pointers."""
    return _cpp.Pass(**describe(x, g, plan, output, upstream))


def huge_pages(fresh: Tensor) -> Tensor:
    """The tensor, in 2 MiB pages if it is large."""
    size = fresh.nbytes
    if size >= HUGE:
        _cpp.huge_pages(data=fresh.data_ptr(), bytes=size)
    return fresh


def empty_gradient(input: Tensor) -> Tensor:
    """Laid out like the input."""
    return huge_pages(torch.empty_like(input))


def _segments(segments: Segments | None) -> dict[str, int]:
    return (
        {"segments": segments.of_pixel.data_ptr(), "groups": segments.groups}
        if segments
        else {"segments": 0, "groups": 0}
    )


def forward(x: Tensors, g: Geometry, plan: Plan, segments: Segments | None = None) -> tuple[Tensor, int]:
    """Sums ``(K, N, C)`` or ``(K, groups, 1)`` and the number of targets or weights out of range."""
    groups = segments.groups if segments else g.shape[0]
    sums = torch.empty((plan.rows, groups, g.shape[1]), dtype=torch.float64, device="cpu")
    invalid = _cpp.pixel_stats_forward(
        layout=layout(x, g, plan),
        inputs=pointers(x),
        sums=sums.data_ptr(),
        **_segments(segments),
        threads=torch.get_num_threads(),
    )
    return sums, invalid


def backward(
    x: Tensors,
    g: Geometry,
    plan: Plan,
    coefficient: Tensor,
    upstream: Tensor | None = None,
    segments: Segments | None = None,
) -> Tensor:
    grad = empty_gradient(x.input)
    _cpp.pixel_stats_backward(
        layout=layout(x, g, plan, grad, upstream),
        inputs=pointers(x),
        grad_input=grad.data_ptr(),
        upstream=0 if upstream is None else upstream.data_ptr(),
        coefficient=coefficient.data_ptr(),
        **_segments(segments),
        threads=torch.get_num_threads(),
    )
    return grad


def loss_map(x: Tensors, g: Geometry, plan: Plan, coefficient: Tensor) -> tuple[Tensor, int]:
    dtype = torch.float64 if x.input.dtype == torch.float64 else torch.float32
    out = torch.empty(g.map_shape, dtype=dtype, device="cpu")
    invalid = _cpp.pixel_stats_map(
        layout=layout(x, g, plan, out),
        inputs=pointers(x),
        loss_map=out.data_ptr(),
        coefficient=coefficient.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return out, invalid
