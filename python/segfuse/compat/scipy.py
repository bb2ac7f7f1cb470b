"""``scipy.ndimage.distance_transform_edt``, on arrays and tensors of one to three axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops.distance_transform_edt import distance_transform_edt as transform
from ._arrays import as_tensor, like, spacing_of

__all__ = ["distance_transform_edt"]


def distance_transform_edt(
    input: Any,
    sampling: Any = None,
    return_distances: bool = True,
    return_indices: bool = False,
    distances: Any = None,
    indices: Any = None,
) -> Any:
    """``scipy.ndimage.distance_transform_edt``: float64 distances, int32 indices of the nearest zero.

    Where several zeros are equally near, the index may be that of another of them. An input without a zero has the
    distances to the position ``(-1, 0, ...)``, as in SciPy.
    """
    write_distances, write_indices = distances is not None, indices is not None
    if not (return_distances or return_indices or write_distances or write_indices):
        raise RuntimeError("at least one of return_distances/return_indices must be True")
    if (write_distances and not return_distances) or (write_indices and not return_indices):
        raise RuntimeError("return_distances/return_indices must be True when an array for them is given")
    x = as_tensor(input)
    mask = x != 0
    if mask.ndim == 0:
        mask = mask.reshape(1)
    if not 1 <= mask.ndim <= 3:
        raise ValueError(f"input must have one to three axes; got shape {tuple(x.shape)}. Try: one image at a time")
    spacing = spacing_of(sampling, mask.ndim)
    _check("distances", distances, tuple(x.shape), (torch.float64, np.float64))
    _check("indices", indices, (mask.ndim, *x.shape), (torch.int32, np.int32))
    found, nearest = _transform(mask, spacing, bool(return_indices))
    found = found.reshape(x.shape)
    results = []
    if return_distances:
        _write(found, distances) if write_distances else results.append(like(found, input))
    if return_indices:
        assert nearest is not None
        _write(nearest, indices) if write_indices else results.append(like(nearest, input))
    return tuple(results) if len(results) > 1 else results[0] if results else None


def _transform(mask: Tensor, spacing: tuple[float, ...], indices: bool) -> tuple[Tensor, Tensor | None]:
    axes = mask.ndim
    if mask.numel() and bool(mask.all()):
        at = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in mask.shape], indexing="ij"))
        at[0] += 1
        sizes = torch.tensor(spacing, dtype=torch.float64).reshape(-1, *[1] * axes)
        outside = torch.zeros((axes, *mask.shape), dtype=torch.int32)
        outside[0] = -1
        return (at * sizes).square().sum(0).sqrt(), outside
    found = transform(mask, spacing=spacing, spatial_dims=axes, return_indices=indices, dtype=torch.float64)
    return found if indices else (found, None)


def _check(name: str, given: Any, shape: tuple[int, ...], dtypes: tuple[Any, ...]) -> None:
    if given is None:
        return
    if tuple(given.shape) != shape:
        raise RuntimeError(f"{name} array has wrong shape; got {tuple(given.shape)}, expected {shape}")
    if given.dtype not in dtypes:
        raise RuntimeError(f"{name} array must be {dtypes[0]}; got {given.dtype}")


def _write(found: Tensor, into: Any) -> None:
    if isinstance(into, Tensor):
        into.copy_(found)
    else:
        into[...] = found.numpy()
