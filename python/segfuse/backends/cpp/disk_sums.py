"""disk_sums on the CPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops._hard_pair import HardPair
from ._hard_pair import native
from ._hard_pair import refuses as refuses
from .pixel_stats import empty_gradient


def forward(
    pair: HardPair, with_gradient: bool, *, radii: tuple[int, ...], alpha: float, hard: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Sums ``(N, C)`` and their derivative by p. ``hard``: int16 predicted class numbers, or p > 1/2."""
    sums = torch.empty(pair.groups, dtype=torch.float64, device="cpu")
    grad = empty_gradient(pair.p) if with_gradient else None
    done = _cpp.disk_sums_forward(
        pair=native(pair, grad),
        hard=0 if hard is None else hard.data_ptr(),
        radii=radii,
        alpha=alpha,
        sums=sums.data_ptr(),
        threads=torch.get_num_threads(),
    )
    assert done
    return sums, grad
