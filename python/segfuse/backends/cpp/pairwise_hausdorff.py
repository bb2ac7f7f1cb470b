"""pairwise_hausdorff on the CPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from ... import _cpp
from ...ops._hard_pair import HardPair
from .._layout import pairwise_mean
from ._hard_pair import native
from ._hard_pair import refuses as refuses
from .pixel_stats import empty_gradient


def forward(
    pair: HardPair,
    with_gradient: bool,
    *,
    alpha: float,
    eps: float,
    form: str,
    points: tuple[Tensor, ...] | None,
) -> tuple[Tensor, Tensor | None]:
    """Losses ``(N, C)`` and their derivative by p."""
    losses = torch.empty(pair.groups, dtype=torch.float64, device="cpu")
    grad = empty_gradient(pair.p) if with_gradient else None
    given = (
        torch.cat([*points, torch.zeros(1, pair.p.ndim - 2, dtype=torch.float64, device="cpu")])
        if points is not None
        else None
    )
    _cpp.pairwise_hausdorff_forward(
        pair=native(pair, grad),
        mean=pairwise_mean(alpha, form),
        exponent=alpha,
        eps=eps,
        points=0 if given is None else given.data_ptr(),
        begin=list(accumulate((len(t) for t in points or ()), initial=0)),
        losses=losses.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return losses, grad
