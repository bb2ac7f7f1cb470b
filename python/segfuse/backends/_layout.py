"""How tensors are described to a native extension: numbers of dtypes, strides and addresses."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from ..ops._hard_pair import HardPair
from ..ops.distance_transform_edt import MODES, Request
from ..ops.local_moments import Window
from ..ops.pixel_stats import Geometry, Plan, Tensors

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


def describe(x: Tensors, g: Geometry, plan: Plan, output: Tensor | None, upstream: Tensor | None) -> dict[str, Any]:
    """The arguments of ``Pass``: everything about a call but its pointers."""
    return {
        **plan.native,
        "shape": g.shape,
        "activation": ACTIVATION[g.activation],
        "index_target": g.index_target,
        "ignore_index": g.ignore_index,
        "input": _layout(x.input, g),
        "target": _layout(x.target, g),
        "weight": _layout(x.weight, g),
        "mask": _layout(x.mask, g),
        "distance": _layout(x.distance, g),
        "output": _layout(output, g),
        "upstream": _layout(upstream, g),
    }


def pointers(x: Tensors) -> tuple[int, int, int, int, int]:
    input, target, weight, mask, distance = x
    return (
        input.data_ptr(),
        target.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        0 if distance is None else distance.data_ptr(),
    )


def computed(input: Tensor) -> torch.dtype:
    """The type of computation."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def describe_moments(a: Tensor, b: Tensor | None, window: Window, output: Tensor | None = None) -> dict[str, Any]:
    """The arguments of ``MomentsPass``."""

    def of(x: Tensor | None) -> tuple[int, tuple[int, ...]] | None:
        return None if x is None else (DTYPE[x.dtype], x.stride())

    return {
        "shape": a.shape,
        "weights": window.weights,
        "valid": window.valid,
        "a": of(a),
        "b": of(b),
        "output": of(output),
    }


def moments_shape(a: Tensor, window: Window) -> tuple[int, ...]:
    """``(N, C, *centres)``; no centre where there is no pixel."""
    return (*a.shape[:2], *(max(0, n) if 0 in a.shape else n for n in window.centres(a.shape[2:])))


def describe_windows(
    x: Tensors, g: Geometry, window: Window, first_class: int, output: Tensor | None
) -> dict[str, Any]:
    """The arguments of ``WindowPass``: everything about a fused loss on windows but its pointers and numbers."""
    return {
        "shape": g.shape,
        "weights": window.weights,
        "valid": window.valid,
        "activation": ACTIVATION[g.activation],
        "exclusive": g.exclusive,
        "index_target": g.index_target,
        "ignore_index": g.ignore_index,
        "first_class": first_class,
        "input": _layout(x.input, g),
        "target": _layout(x.target, g),
        "weight": _layout(x.weight, g),
        "mask": _layout(x.mask, g),
        "output": _layout(output, g),
    }


class Buffers:
    """Memory in which the classes of a pixel meet: p and -log p of the target class, and with ``backward`` what their
    gradients are. Empty without softmax."""

    def __init__(self, x: Tensors, g: Geometry, entropy: bool, backward: bool) -> None:
        self.held: list[Tensor | None] = [None] * 4
        if g.activation == "softmax":
            pixel = (g.shape[0], *g.spatial)
            for i, shape in enumerate((g.shape, pixel, g.shape, pixel)):
                if (i < 2 or backward) and (i % 2 == 0 or entropy):
                    self.held[i] = torch.empty(shape, dtype=computed(x.input), device=x.input.device)

    @property
    def addresses(self) -> list[int]:
        return [address(x) for x in self.held]


def without_background(grad: Tensor, g: Geometry, first_class: int) -> Tensor:
    """The gradient is 0 for the classes that are left out: no sweep visits them."""
    if first_class and g.activation != "softmax":
        grad[:, :first_class] = 0
    return grad


def describe_distances(input: Tensor, request: Request) -> dict[str, Any]:
    """A distance transform but for its pointers. Missing axes come first and have length 1."""
    leading = input.ndim - request.spatial
    axes = list(zip(input.shape[leading:], input.stride()[leading:], request.spacing))
    if not request.indices:
        axes = [axis for axis in axes if axis[0] != 1]  # so that the last axis is as long as it can be
    shape, strides, spacing = zip(*[(1, 0, 1.0)] * (3 - len(axes)), *axes)
    return {
        "dtype": DTYPE[input.dtype],
        "leading_shape": input.shape[:leading],
        "leading_strides": input.stride()[:leading],
        "shape": shape,
        "strides": strides,
        "spacing": spacing,
        "mode": MODES.index(request.mode),
        "classes": request.classes,
        "threshold": request.threshold or 0.0,
        "squared": request.squared,
        "output_double": request.dtype == torch.float64,
        "axes": request.spatial,
    }


def describe_pair(pair: HardPair, grad: Tensor | None) -> dict[str, Any]:
    """The arguments of the native ``HardPair``."""
    return {
        "shape": pair.p.shape,
        "first": pair.first,
        "dtype": DTYPE[pair.p.dtype],
        "index": pair.index,
        "plain": not pair.ignores and pair.weight is None,
        "weight_per_class": pair.weight is not None and pair.weight.shape[1] > 1,
        "p": pair.p.data_ptr(),
        "code": pair.code.data_ptr(),
        "weight": 0 if pair.weight is None else pair.weight.data_ptr(),
        "grad": 0 if grad is None else grad.data_ptr(),
    }


_HARMONIC, _POWER_MEAN, _LEAST, _POWER_MIN = range(4)  # enum PairwiseMean in csrc/segfuse.h


def pairwise_mean(alpha: float, form: str) -> int:
    return _POWER_MIN if form == "power_min" else {-1.0: _HARMONIC, -inf: _LEAST}.get(alpha, _POWER_MEAN)
