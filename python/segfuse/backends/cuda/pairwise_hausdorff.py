"""pairwise_hausdorff on a GPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from ... import _cuda
from ...ops._hard_pair import HardPair
from .._layout import pairwise_mean
from ._device import where, workspace
from ._hard_pair import native, outputs
from ._hard_pair import refuses as refuses


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
    losses, grad = outputs(pair, with_gradient)
    call, device = native(pair, grad), pair.p.device
    given, begin, count = None, None, 0
    if points is not None:
        count = sum(len(t) for t in points)
        given = torch.cat([*points, torch.zeros(1, pair.p.ndim - 2, dtype=torch.float64, device=device)])
        begin = torch.tensor(list(accumulate((len(t) for t in points), initial=0)), device=device)
    room = workspace(_cuda.pairwise_hausdorff_workspace(pair=call, given=points is not None, count=count), pair.p)
    _cuda.pairwise_hausdorff_forward(
        where=where(pair.p),
        pair=call,
        mean=pairwise_mean(alpha, form),
        exponent=alpha,
        eps=eps,
        points=0 if given is None else given.data_ptr(),
        begin=0 if begin is None else begin.data_ptr(),
        count=count,
        losses=losses.data_ptr(),
        workspace=room.data_ptr(),
    )
    return losses, grad
