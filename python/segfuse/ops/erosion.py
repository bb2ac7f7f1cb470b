"""erosion: how long the errors between probabilities and a hard target survive soft erosion."""

from __future__ import annotations

from math import isfinite

from torch import Tensor

from ..backends import pick
from ._hard_pair import HardPair, by_group

NORMS = ("minmax", "double", "none")  # in the order of enum ErosionNorm in csrc/segfuse.h
MAX_STEPS = 1000


def check(steps: int, alpha: float, norm: str) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise ValueError(
            f"erosions must be a whole number from 1 to {MAX_STEPS}; got {steps!r}. Try: erosions=10, which reaches "
            "10 pixels deep"
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not isfinite(alpha) or abs(alpha) > 16:
        raise ValueError(f"alpha must be a number from -16 to 16; got {alpha!r}. Try: alpha=2.0")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(map(repr, NORMS))}; got {norm!r}. Try: norm='minmax'")


def erosion(pair: HardPair, *, steps: int = 10, alpha: float = 2.0, norm: str = "minmax") -> Tensor:
    """Sums ``(N, C)`` float64 of ``u sum_k k^alpha b_k`` over the pixels of every group, differentiable by ``pair.p``.

    ``b_0 = m (p - y)^2``, ``e_k = relu(B * b_{k-1} - 1/2)``, ``b_k = norm(e_k)``; B averages a pixel and its 2d face
    neighbours, 0 outside the image.

    Args:
        pair: probabilities and target, from :func:`~segfuse.ops._hard_pair.hard_pair`.
        steps: number of erosions.
        alpha: exponent of the erosion's number.
        norm: ``"minmax"`` stretches every group to [0, 1] (not where all its pixels are equal); ``"double"`` is
            ``2 e``; ``"none"``.
    Raises:
        ValueError: a setting out of range.

    Source: Karimi and Salcudean 2019 (arXiv 1904.10030).
    """
    check(steps, alpha, norm)
    from ..backends.reference import erosion as reference

    return by_group(pair, pick("erosion", pair.p).forward, reference.sums, steps=steps, alpha=float(alpha), norm=norm)
