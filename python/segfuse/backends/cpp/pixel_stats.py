"""pixel_stats on the CPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops.pixel_stats import Geometry, Plan, Tensors

# The order of enum DType in csrc/segfuse.h.
_STORAGE = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "bool",
    "uint8",
    "int8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
)
DTYPE = {getattr(torch, name): number for number, name in enumerate(_STORAGE)}
ACTIVATION = {"sigmoid": 0, "softmax": 1, "identity": 2}
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


def _layout(x: Tensor | None, g: Geometry) -> tuple[int, tuple[int, ...]] | None:
    """dtype and the strides of N, C and every spatial axis; 0 where the tensor is the same for every class."""
    if x is None:
        return None
    stride = x.stride()
    if x.ndim == len(g.spatial) + 1:
        stride = (stride[0], 0, *stride[1:])
    elif x.shape[1] == 1:
        stride = (stride[0], 0, *stride[2:])
    return DTYPE[x.dtype], stride


def layout(
    x: Tensors, g: Geometry, plan: Plan, output: Tensor | None = None, upstream: Tensor | None = None
) -> _cpp.Pass:
    """Everything about a call but its pointers."""
    return _cpp.Pass(
        **plan.native,
        shape=g.shape,
        activation=ACTIVATION[g.activation],
        index_target=g.index_target,
        ignore_index=g.ignore_index,
        input=_layout(x.input, g),
        target=_layout(x.target, g),
        weight=_layout(x.weight, g),
        mask=_layout(x.mask, g),
        output=_layout(output, g),
        upstream=_layout(upstream, g),
    )


def pointers(x: Tensors) -> dict[str, int]:
    return {
        "input": x.input.data_ptr(),
        "target": x.target.data_ptr(),
        "weight": 0 if x.weight is None else x.weight.data_ptr(),
        "mask": 0 if x.mask is None else x.mask.data_ptr(),
        "threads": torch.get_num_threads(),
    }


def empty_gradient(input: Tensor, contiguous: torch.dtype | None = None) -> Tensor:
    """Laid out like the input, or contiguous in a dtype of its own."""
    grad = torch.empty_like(input) if contiguous is None else torch.empty(input.shape, dtype=contiguous)
    size = grad.nbytes
    if size >= HUGE:
        _cpp.huge_pages(data=grad.data_ptr(), bytes=size)
    return grad


def forward(x: Tensors, g: Geometry, plan: Plan) -> tuple[Tensor, int]:
    """Sums ``(K, N, C)`` and the number of targets or weights out of range."""
    sums = torch.empty((plan.rows, *g.shape[:2]), dtype=torch.float64)
    return sums, _cpp.pixel_stats_forward(layout=layout(x, g, plan), **pointers(x), sums=sums.data_ptr())


def backward(x: Tensors, g: Geometry, plan: Plan, coefficient: Tensor, upstream: Tensor | None = None) -> Tensor:
    grad = empty_gradient(x.input)
    _cpp.pixel_stats_backward(
        layout=layout(x, g, plan, grad, upstream),
        **pointers(x),
        grad_input=grad.data_ptr(),
        upstream=0 if upstream is None else upstream.data_ptr(),
        coefficient=coefficient.data_ptr(),
    )
    return grad


def loss_map(x: Tensors, g: Geometry, plan: Plan, coefficient: Tensor) -> tuple[Tensor, int]:
    dtype = torch.float64 if x.input.dtype == torch.float64 else torch.float32
    out = torch.empty(g.map_shape, dtype=dtype)
    invalid = _cpp.pixel_stats_map(
        layout=layout(x, g, plan, out), **pointers(x), loss_map=out.data_ptr(), coefficient=coefficient.data_ptr()
    )
    return out, invalid
