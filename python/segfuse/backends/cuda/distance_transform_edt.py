"""distance_transform_edt on a GPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cuda
from ...ops.distance_transform_edt import Request
from .._layout import describe_distances
from ._device import elsewhere as refuses
from ._device import where, workspace

__all__ = ["forward", "refuses"]


def forward(input: Tensor, request: Request) -> tuple[Tensor, Tensor | None]:
    output_shape = request.output_shape(input)
    output, second = torch.empty(output_shape, dtype=request.dtype, device=input.device), None
    if request.mode == "nearest_two":
        second = torch.empty_like(output)
    elif request.indices:
        second = torch.empty((request.spatial, *output_shape), dtype=torch.int32, device=input.device)
    layout = _cuda.Distances(**describe_distances(input, request), indices=request.indices)
    room = workspace(_cuda.distance_transform_edt_workspace(layout=layout), input)
    _cuda.distance_transform_edt(
        where=where(input),
        layout=layout,
        input=input.data_ptr(),
        output=output.data_ptr(),
        second=0 if second is None or request.indices else second.data_ptr(),
        indices=0 if second is None or not request.indices else second.data_ptr(),
        workspace=room.data_ptr(),
    )
    return output, second
