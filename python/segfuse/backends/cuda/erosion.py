"""erosion on a GPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

from torch import Tensor

from ... import _cuda
from ...ops._hard_pair import HardPair
from ...ops.erosion import NORMS
from ._device import where, workspace
from ._hard_pair import native, outputs
from ._hard_pair import refuses as refuses


def forward(
    pair: HardPair, with_gradient: bool, *, steps: int, alpha: float, norm: str
) -> tuple[Tensor, Tensor | None]:
    """Sums ``(N, C)`` and their derivative by p."""
    sums, grad = outputs(pair, with_gradient)
    call = native(pair, grad)
    room = workspace(_cuda.erosion_workspace(pair=call, steps=steps), pair.p)
    _cuda.erosion_forward(
        where=where(pair.p),
        pair=call,
        steps=steps,
        alpha=alpha,
        norm=NORMS.index(norm),
        sums=sums.data_ptr(),
        workspace=room.data_ptr(),
    )
    return sums, grad
