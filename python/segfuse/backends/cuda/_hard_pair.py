"""A pair of probabilities and hard target as the bindings take it, and memory for what becomes of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cuda
from ...ops._hard_pair import HardPair
from .._layout import describe_pair
from ._device import elsewhere


def refuses(input: Tensor, device: str | None = None) -> str | None:
    compiled = input.dtype in (torch.float32, torch.float64)
    return elsewhere(input, device) or (None if compiled else f"{input.dtype} is not compiled in")


def native(pair: HardPair, grad: Tensor | None) -> _cuda.HardPair:
    return _cuda.HardPair(**describe_pair(pair, grad))


def outputs(pair: HardPair, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """A number per group, and the gradient by p; both are 0 where no kernel writes."""
    grad = torch.empty_like(pair.p) if with_gradient else None
    if grad is not None and pair.first:
        grad[:, : pair.first] = 0
    make = torch.empty if pair.p.numel() else torch.zeros
    return make(pair.groups, dtype=torch.float64, device=pair.p.device), grad
