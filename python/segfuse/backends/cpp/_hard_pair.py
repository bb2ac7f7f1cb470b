"""A pair of probabilities and hard target as the bindings take it."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops._hard_pair import HardPair
from .pixel_stats import DTYPE


def refuses(input: Tensor, device: str | None = None) -> str | None:
    device = device or input.device.type
    if device != "cpu":
        return f"it runs on the CPU, the input is on {device}"
    return None if input.dtype in (torch.float32, torch.float64) else f"{input.dtype} is not compiled in"


def native(pair: HardPair, grad: Tensor | None) -> _cpp.HardPair:
    return _cpp.HardPair(
        shape=pair.p.shape,
        first=pair.first,
        dtype=DTYPE[pair.p.dtype],
        index=pair.index,
        plain=not pair.ignores and pair.weight is None,
        weight_per_class=pair.weight is not None and pair.weight.shape[1] > 1,
        p=pair.p.data_ptr(),
        code=pair.code.data_ptr(),
        weight=0 if pair.weight is None else pair.weight.data_ptr(),
        grad=0 if grad is None else grad.data_ptr(),
    )
