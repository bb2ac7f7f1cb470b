"""The ``edt`` package: Euclidean distances of label maps of one to three axes, on arrays and tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.distance_transform_edt import FLOATING, distance_transform_edt
from ._arrays import as_tensor, like, spacing_of

__all__ = ["edt", "edtsq", "sdf", "sdfsq"]


def edt(
    data: Any,
    anisotropy: Any = None,
    black_border: bool = False,
    parallel: int = 1,
    voxel_graph: Any = None,
    order: str | None = None,
) -> Any:
    """``edt.edt``: distance of every labelled pixel to the nearest one with another label; 0 where the label is 0.

    Args:
        anisotropy: size of a pixel along every axis of ``data``.
        black_border: there are zeros around the image.
        parallel: has no effect: the threads are those of ``torch.get_num_threads()``.
    Returns:
        float32; infinite where there is no other label.
    Raises:
        NotImplementedError: with a ``voxel_graph``.
    """
    return _distances(data, anisotropy, black_border, voxel_graph, squared=False, signed=False)


def edtsq(
    data: Any,
    anisotropy: Any = None,
    black_border: bool = False,
    parallel: int = 1,
    voxel_graph: Any = None,
    order: str | None = None,
) -> Any:
    """``edt.edtsq``: the square of :func:`edt`."""
    return _distances(data, anisotropy, black_border, voxel_graph, squared=True, signed=False)


def sdf(
    data: Any,
    anisotropy: Any = None,
    black_border: bool = False,
    parallel: int = 1,
    voxel_graph: Any = None,
    order: str | None = None,
) -> Any:
    """``edt.sdf``: :func:`edt`, and minus the distance to the nearest label where the label is 0."""
    return _distances(data, anisotropy, black_border, voxel_graph, squared=False, signed=True)


def sdfsq(
    data: Any, anisotropy: Any = None, black_border: bool = False, parallel: int = 1, voxel_graph: Any = None
) -> Any:
    """``edt.sdfsq``: :func:`sdf` with squared distances."""
    return _distances(data, anisotropy, black_border, voxel_graph, squared=True, signed=True)


def _distances(data: Any, anisotropy: Any, black_border: bool, voxel_graph: Any, *, squared: bool, signed: bool) -> Any:
    if voxel_graph is not None:
        raise NotImplementedError("a voxel_graph is not supported. Try: the edt package for that call")
    x = as_tensor(data)
    if not 1 <= x.ndim <= 3:
        raise TypeError(f"Multi-Label EDT library only supports up to 3 dimensions got {x.ndim}.")
    labels, spacing = _labels(x), spacing_of(anisotropy, x.ndim)
    found = _inside(labels, spacing, black_border, squared)
    if signed:
        found = found - _inside(labels == 0, spacing, black_border, squared)
    return like(found, data)


def _labels(x: Tensor) -> Tensor:
    """Labels as integers; equal floating-point numbers have equal bits, but for the two zeros."""
    if x.dtype not in FLOATING:
        return x
    return (x + 0.0).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def _inside(labels: Tensor, spacing: tuple[float, ...], black_border: bool, squared: bool) -> Tensor:
    axes = labels.ndim
    if not labels.numel():
        return torch.zeros(labels.shape)
    inside = labels != 0
    crop = (slice(None),) * axes
    if black_border:
        crop = (slice(1, -1),) * axes
        labels = torch.nn.functional.pad(labels, [1] * 2 * axes)
    mode: Any = "inside" if labels.dtype == torch.bool else "labels"
    found: Tensor = distance_transform_edt(labels, spacing=spacing, spatial_dims=axes, mode=mode, squared=squared)[crop]
    return torch.where(inside, torch.where(found > 0, found, torch.inf), 0)
