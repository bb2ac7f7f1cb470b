"""Maps that follow from a target alone: connected components, penalties and weights by distance.

Every function takes labels or masks with any leading axes before the last ``axes`` spatial ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .ops.distance_transform_edt import distance_transform_edt


def connected_components(mask: Tensor, axes: int) -> Tensor:
    """Numbers the connected components of every mask, corners included: int32, 0 is background.

    Numbers run through the whole batch, so that no two components share one. Found by SciPy, on the CPU.
    """
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError(
            "instances are found by SciPy, which is not installed. Try: pip install scipy, or pass instances="
        ) from error
    leading = mask.ndim - axes
    structure = torch.zeros((3,) * mask.ndim, dtype=torch.bool, device="cpu")
    structure[(1,) * leading] = True  # no component reaches into another mask
    found, _ = ndimage.label(mask.cpu().numpy(), structure.numpy(), output="int32")
    return torch.from_numpy(found).to(mask.device)


def contour(mask: Tensor, axes: int) -> Tensor:
    """Object pixels with a face neighbour in the background; the border of the image is no background."""
    edge = torch.zeros_like(mask)
    for axis in range(-axes, 0):
        m, e = mask.movedim(axis, 0), edge.movedim(axis, 0)
        e[:-1] |= m[:-1] & ~m[1:]
        e[1:] |= m[1:] & ~m[:-1]
    return edge


def signed_distance(masks: Tensor, delta: float, **options: Any) -> Tensor:
    """Distance to the mask outside of it, ``delta`` minus the distance to its complement inside; 0 if empty or full.

    ``options`` are those of :func:`segfuse.distance_transform_edt`.
    """
    phi = distance_transform_edt(masks, mode="signed", **options)
    return phi.add_(phi < 0, alpha=delta) if delta else phi


def boundary_penalty(
    labels: Tensor,
    axes: int,
    classes: int,
    normalized: bool,
    spacing: float | Sequence[float] | None,
    dtype: torch.dtype,
) -> Tensor:
    """dmax - d of every region {label = c}, divided by dmax - dmin where ``normalized``; 0 where there is one label.

    ``labels`` are 0 to ``classes`` - 1; d is the distance to the nearest pixel with another label.
    """
    d = distance_transform_edt(labels, spatial_dims=axes, spacing=spacing, mode="labels", dtype=dtype)
    if not d.numel():
        return d
    rows = d.reshape(-1, d[(0,) * (d.ndim - axes)].numel())
    region = labels.reshape(rows.shape).long()
    largest = rows.new_zeros(len(rows), classes).scatter_reduce_(1, region, rows, "amax")
    depth = largest.gather(1, region) - rows
    if normalized:
        smallest = torch.full_like(largest, torch.inf).scatter_reduce_(1, region, rows, "amin")
        width = (largest - smallest).gather(1, region)
        depth = torch.where(width > 0, depth / width, 1)
    return torch.where(rows > 0, depth, 0).reshape(d.shape)


def gap_weight(
    instances: Tensor, axes: int, w0: float, sigma: float, spacing: float | Sequence[float] | None, dtype: torch.dtype
) -> Tensor:
    """w0 exp(-(d1 + d2)^2 / (2 sigma^2)) with the distances to the two nearest instances; 0 with fewer than two."""
    nearest, second = distance_transform_edt(
        instances, spatial_dims=axes, spacing=spacing, mode="nearest_two", dtype=dtype
    )
    return nearest.add_(second).square_().div_(-2 * sigma * sigma).exp_().mul_(w0)
