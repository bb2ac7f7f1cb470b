"""distance_transform_edt on the CPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops.distance_transform_edt import MODES, Request
from .pixel_stats import DTYPE, HUGE


def refuses(input: Tensor, device: str | None = None) -> str | None:
    device = device or input.device.type
    return None if device == "cpu" else f"it runs on the CPU, the input is on {device}"


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    out = torch.empty(shape, dtype=dtype)
    if out.nbytes >= HUGE:
        _cpp.huge_pages(data=out.data_ptr(), bytes=out.nbytes)
    return out


def forward(input: Tensor, request: Request) -> tuple[Tensor, Tensor | None]:
    shape = request.output_shape(input)
    output = _empty(shape, request.dtype)
    second = None
    if request.mode == "nearest_two":
        second = _empty(shape, request.dtype)
    elif request.indices:
        second = _empty((request.spatial, *shape), torch.int32)
    leading, missing = input.ndim - request.spatial, 3 - request.spatial
    unfit = _cpp.distance_transform_edt(
        input=input.data_ptr(),
        dtype=DTYPE[input.dtype],
        leading_shape=input.shape[:leading],
        leading_strides=input.stride()[:leading],
        shape=(*(1,) * missing, *input.shape[leading:]),
        strides=(*(0,) * missing, *input.stride()[leading:]),
        spacing=(*(1.0,) * missing, *request.spacing),
        mode=MODES.index(request.mode),
        classes=request.classes,
        threshold=request.threshold or 0.0,
        squared=request.squared,
        output=output.data_ptr(),
        output_double=request.dtype == torch.float64,
        second=0 if second is None or request.indices else second.data_ptr(),
        indices=0 if second is None or not request.indices else second.data_ptr(),
        axes=request.spatial,
        threads=torch.get_num_threads(),
    )
    if unfit:  # instance numbers above 2^31: number them from 1
        positive = input > 0
        numbers = torch.unique(input[positive], return_inverse=True)[1]
        return forward(
            torch.zeros(input.shape, dtype=torch.int32).masked_scatter_(positive, numbers.int() + 1), request
        )
    return output, second
