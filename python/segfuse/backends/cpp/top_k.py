"""top_k on the CPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops.top_k import Selection
from .pixel_stats import refuses as refuses


def forward(values: Tensor, valid: Tensor | None, percent: float) -> Selection:
    rows, length = values.shape
    chosen = torch.empty(values.shape, dtype=torch.uint8, device="cpu")
    sum, count = torch.empty((2, rows), dtype=torch.float64, device="cpu")
    _cpp.top_k_forward(
        rows=rows,
        length=length,
        is_double=values.dtype == torch.float64,
        values=values.data_ptr(),
        valid=0 if valid is None else valid.data_ptr(),
        percent=percent,
        chosen=chosen.data_ptr(),
        sum=sum.data_ptr(),
        count=count.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return Selection(chosen, sum, count)
