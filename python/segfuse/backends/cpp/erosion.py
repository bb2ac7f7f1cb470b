"""erosion on the CPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops._hard_pair import HardPair
from ...ops.erosion import NORMS
from ._hard_pair import native
from ._hard_pair import refuses as refuses
from .pixel_stats import empty_gradient


def forward(
    pair: HardPair, with_gradient: bool, *, steps: int, alpha: float, norm: str
) -> tuple[Tensor, Tensor | None]:
    """Sums ``(N, C)`` and their derivative by p."""
    sums = torch.empty(pair.groups, dtype=torch.float64, device="cpu")
    grad = empty_gradient(pair.p) if with_gradient else None
    _cpp.erosion_forward(
        pair=native(pair, grad),
        steps=steps,
        alpha=alpha,
        norm=NORMS.index(norm),
        sums=sums.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return sums, grad
