"""distance_transform_edt on the CPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops.distance_transform_edt import Request, instances
from .._layout import describe_distances
from .pixel_stats import HUGE


def refuses(input: Tensor, device: str | None = None) -> str | None:
    device = device or input.device.type
    return None if device == "cpu" else f"it runs on the CPU, the input is on {device}"


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    out = torch.empty(shape, dtype=dtype, device="cpu")
    if out.nbytes >= HUGE:
        _cpp.huge_pages(data=out.data_ptr(), bytes=out.nbytes)
    return out


def forward(input: Tensor, request: Request) -> tuple[Tensor, Tensor | None]:
    output_shape = request.output_shape(input)
    output, second = _empty(output_shape, request.dtype), None
    if request.mode == "nearest_two":
        second = _empty(output_shape, request.dtype)
    elif request.indices:
        second = _empty((request.spatial, *output_shape), torch.int32)
    unfit = _cpp.distance_transform_edt(
        **describe_distances(input, request),
        input=input.data_ptr(),
        output=output.data_ptr(),
        second=0 if second is None or request.indices else second.data_ptr(),
        indices=0 if second is None or not request.indices else second.data_ptr(),
        threads=torch.get_num_threads(),
    )
    if unfit:  # instance numbers above 2^31: number them from 1
        labels = instances(input)
        there = labels != 0
        numbers = torch.unique(labels[there], return_inverse=True)[1]
        return forward(
            torch.zeros(input.shape, dtype=torch.int32, device="cpu").masked_scatter_(there, numbers.int() + 1), request
        )
    return output, second
