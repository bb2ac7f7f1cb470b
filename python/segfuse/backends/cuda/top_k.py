"""top_k on a GPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cuda
from ...ops.top_k import Selection
from ._device import refuses as refuses
from ._device import where, workspace


def forward(values: Tensor, valid: Tensor | None, percent: float) -> Selection:
    rows, length = values.shape
    chosen = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    sum, count = torch.empty((2, rows), dtype=torch.float64, device=values.device)
    room = workspace(_cuda.top_k_workspace(rows=rows, length=length), values)
    _cuda.top_k_forward(
        where=where(values),
        rows=rows,
        length=length,
        is_double=values.dtype == torch.float64,
        values=values.data_ptr(),
        valid=0 if valid is None else valid.data_ptr(),
        percent=percent,
        chosen=chosen.data_ptr(),
        sum=sum.data_ptr(),
        count=count.data_ptr(),
        workspace=room.data_ptr(),
    )
    return Selection(chosen, sum, count)
