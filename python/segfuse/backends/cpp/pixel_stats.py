"""pixel_stats on the CPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops.pixel_stats import Geometry, Plan, Tensors

# The order of enum DType in csrc/segfuse.h.
_STORAGE = ("float32", "float64", "float16", "bfloat16", "bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
DTYPE = {getattr(torch, name): number for number, name in enumerate(_STORAGE)}
ACTIVATION = {"sigmoid": 0, "softmax": 1, "identity": 2}
HUGE = 8 << 20  # bytes; a larger gradient is fresh memory and gets 2 MiB pages


def refuses(input: Tensor, device: str | None = None) -> str | None:
    device = device or input.device.type
    if device != "cpu":
        return f"it runs on the CPU, the input is on {device}"
    return None if input.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16) else f"{input.dtype} is not compiled in"


def _view(x: Tensor | None, g: Geometry) -> tuple[int, int, tuple[int, ...]] | None:
    """Pointer, dtype and the strides of N, C and every spatial axis; 0 where the tensor is the same for every class."""
    if x is None:
        return None
    stride = x.stride()
    if x.ndim == len(g.spatial) + 1:
        stride = (stride[0], 0, *stride[1:])
    elif x.shape[1] == 1:
        stride = (stride[0], 0, *stride[2:])
    return x.data_ptr(), DTYPE[x.dtype], stride


def _call(x: Tensors, g: Geometry, plan: Plan) -> dict[str, object]:
    return {
        "shape": g.shape,
        "activation": ACTIVATION[g.activation],
        "index_target": g.index_target,
        "ignore_index": g.ignore_index,
        "plan": plan.native,
        "input": _view(x.input, g),
        "target": _view(x.target, g),
        "weight": _view(x.weight, g),
        "mask": _view(x.mask, g),
        "threads": torch.get_num_threads(),
    }


def empty_gradient(input: Tensor) -> Tensor:
    grad = torch.empty_like(input)
    size = grad.numel() * grad.element_size()
    if size >= HUGE:
        _cpp.huge_pages(data=grad.data_ptr(), bytes=size)
    return grad


def forward(x: Tensors, g: Geometry, plan: Plan, coefficient: Tensor | None = None) -> tuple[Tensor, int, Tensor | None]:
    """Sums ``(K, N, C)``, the number of invalid targets and, where ``coefficient`` is known before the pass, the gradient."""
    sums = torch.empty((plan.rows, *g.shape[:2]), dtype=torch.float64)
    grad = None if coefficient is None else empty_gradient(x.input)
    invalid = _cpp.pixel_stats_forward(
        **_call(x, g, plan),
        sums=sums.data_ptr(),
        grad_input=_view(grad, g),
        coefficient=0 if coefficient is None else coefficient.data_ptr(),
    )
    return sums, invalid, grad


def backward(x: Tensors, g: Geometry, plan: Plan, coefficient: Tensor, upstream: Tensor | None = None) -> Tensor:
    grad = empty_gradient(x.input)
    _cpp.pixel_stats_backward(
        **_call(x, g, plan), grad_input=_view(grad, g), upstream=_view(upstream, g), coefficient=coefficient.data_ptr()
    )
    return grad


def loss_map(x: Tensors, g: Geometry, plan: Plan, coefficient: Tensor) -> tuple[Tensor, int]:
    dtype = torch.float64 if x.input.dtype == torch.float64 else torch.float32
    out = torch.empty(g.map_shape, dtype=dtype)
    invalid = _cpp.pixel_stats_map(**_call(x, g, plan), loss_map=_view(out, g), coefficient=coefficient.data_ptr())
    return out, invalid
