"""Arrays of NumPy as tensors, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(x: Any) -> Tensor:
    """A tensor of what is a tensor, an array or a nested list; without a copy where there is an array."""
    if isinstance(x, Tensor):
        return x.detach().as_subclass(Tensor)
    array = np.asarray(x)
    if array.dtype.byteorder not in "=|" or any(step < 0 for step in array.strides):
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array)


def like(x: Tensor, given: Any) -> Any:
    """A tensor for a tensor, else an array."""
    return x if isinstance(given, Tensor) else x.numpy()


def spacing_of(value: Any, axes: int) -> tuple[float, ...]:
    """One number for all axes, or one each."""
    if value is None:
        return (1.0,) * axes
    sizes = tuple(float(v) for v in (value if hasattr(value, "__len__") else [value] * axes))
    if len(sizes) != axes:
        raise RuntimeError(f"sequence argument must have length equal to input rank {axes}; got {len(sizes)}: {sizes}")
    return sizes
