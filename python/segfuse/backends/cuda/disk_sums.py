"""disk_sums on a GPU: allocate the outputs, pass the pointers."""

from __future__ import annotations

from torch import Tensor

from ... import _cuda
from ...ops._hard_pair import HardPair
from ._device import where, workspace
from ._hard_pair import native, outputs
from ._hard_pair import refuses as refuses


def forward(
    pair: HardPair, with_gradient: bool, *, radii: tuple[int, ...], alpha: float, hard: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Sums ``(N, C)`` and their derivative by p. ``hard``: int16 predicted class numbers, or p > 1/2."""
    sums, grad = outputs(pair, with_gradient)
    call = native(pair, grad)
    room = workspace(_cuda.disk_sums_workspace(pair=call, radii=radii), pair.p)
    _cuda.disk_sums_forward(
        where=where(pair.p),
        pair=call,
        hard=0 if hard is None else hard.data_ptr(),
        radii=radii,
        alpha=alpha,
        sums=sums.data_ptr(),
        workspace=room.data_ptr(),
    )
    return sums, grad
