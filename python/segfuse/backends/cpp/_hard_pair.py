"""A pair of probabilities and hard target as the bindings take it."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops._hard_pair import HardPair
from .._layout import describe_pair


def refuses(input: Tensor, device: str | None = None) -> str | None:
    device = device or input.device.type
    if device != "cpu":
        return f"it runs on the CPU, the input is on {device}"
    return None if input.dtype in (torch.float32, torch.float64) else f"{input.dtype} is not compiled in"


def native(pair: HardPair, grad: Tensor | None) -> _cpp.HardPair:
    return _cpp.HardPair(**describe_pair(pair, grad))
