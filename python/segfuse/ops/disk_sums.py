"""disk_sums: errors weighted by what balls around them hold of target and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from ..backends import pick
from ._hard_pair import HardPair, by_group

MAX_RADII = 64  # as in csrc/segfuse.h
MAX_BALL = 2**21 - 1  # pixels, as in csrc/segfuse.h
LARGEST = (MAX_BALL // 2, 816, 79)  # radius of such a ball with 1, 2 and 3 axes


def check(radii: Sequence[int], alpha: float) -> None:
    whole = all(isinstance(r, int) and not isinstance(r, bool) and 1 <= r <= LARGEST[0] for r in radii)
    if not 1 <= len(radii) <= MAX_RADII or not whole:
        raise ValueError(
            f"radii must be 1 to {MAX_RADII} whole numbers of pixels >= 1; got {tuple(radii)!r}. "
            "Try: radii=(3, 6, 9, 12, 15, 18)"
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not isfinite(alpha) or abs(alpha) > 16:
        raise ValueError(f"alpha must be a number from -16 to 16; got {alpha!r}. Try: alpha=2.0")


def disk_sums(
    pair: HardPair, *, radii: Sequence[int] = (3, 6, 9, 12, 15, 18), alpha: float = 2.0, hard: str = "threshold"
) -> Tensor:
    """Sums ``(N, C)`` float64 of ``u (p - y)^2 (w_f p + w_e y)`` over every group, differentiable by ``pair.p``.

    ``w_f = sum_r r^alpha (f(B_r * (1 - y)) + f(B_r * q))`` and ``w_e = sum_r r^alpha (f(B_r * y) + f(B_r * (1 - q)))``
    with ``f(x) = max(0, x - 1/2)``. B_r averages the ball of radius r, 0 outside the image; q is the hard prediction.
    The weights carry no gradient.

    Args:
        pair: probabilities and target, from :func:`~segfuse.ops._hard_pair.hard_pair`.
        radii: in pixels.
        alpha: exponent of the radius.
        hard: q is p > 1/2 for ``"threshold"``, the most probable class for ``"argmax"``.
    Raises:
        ValueError: a setting out of range; a ball of more than 2097151 pixels.

    Source: Karimi and Salcudean 2019 (arXiv 1904.10030).
    """
    check(radii, alpha)
    dims = pair.p.ndim - 2
    if max(radii) > LARGEST[dims - 1]:
        raise ValueError(
            f"radii must be at most {LARGEST[dims - 1]} for {dims} spatial axes; got {tuple(radii)}. "
            "Try: radii=(3, 6, 9, 12, 15, 18)"
        )
    if hard == "argmax" and not pair.index:
        raise ValueError(
            "hard='argmax' needs classes that exclude each other; got one mask per channel. Try: hard='threshold'"
        )
    from ..backends.reference import disk_sums as reference

    predicted = pair.p.detach().argmax(1, keepdim=True).to(torch.int16) if hard == "argmax" else None
    return by_group(
        pair, pick("disk_sums", pair.p).forward, reference.sums, radii=tuple(radii), alpha=float(alpha), hard=predicted
    )
