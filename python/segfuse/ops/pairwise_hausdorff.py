"""pairwise_hausdorff: the weighted Hausdorff distance between probabilities and points."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isnan

import torch
from torch import Tensor

from ..backends import pick
from ._hard_pair import HardPair, by_group
from .pixel_stats import may_look

FORMS = ("generalized_mean", "power_min")


def check(alpha: float, eps: float, form: str) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or isnan(alpha) or not alpha <= -0.01:
        raise ValueError(f"alpha must be a number <= -0.01, or -inf; got {alpha!r}. Try: alpha=-1.0")
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 1e-12 <= eps < inf:
        raise ValueError(f"eps must be a number >= 1e-12; got {eps!r}. Try: eps=1e-6")
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}; got {form!r}. Try: form={FORMS[0]!r}")


def check_points(points: Sequence[Tensor], shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Coordinates of every group, float64, for probabilities of ``shape`` (N, C, *spatial) on a device.

    On a GPU a coordinate that is not finite makes the loss NaN.
    """
    groups, dims = shape[0] * shape[1], len(shape) - 2
    if len(points) != groups:
        raise ValueError(
            f"points must hold one tensor of coordinates for each of the {groups} images; got {len(points)}. "
            "Try: torch.empty(0, 2) for an image without points"
        )
    for t in points:
        if not isinstance(t, Tensor) or t.ndim != 2 or t.shape[1] != dims or t.is_complex():
            given = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(
                f"points must be tensors (number of points, {dims}), in pixels along each spatial axis; got {given}. "
                "Try: (mask > 0).nonzero()"
            )
        if may_look(t) and not bool(t.isfinite().all()):
            raise ValueError("points must be finite; got nan or inf. Try: t[t.isfinite().all(1)]")
    return tuple(t.detach().to(device, torch.float64).contiguous() for t in points)


def pairwise_hausdorff(
    pair: HardPair,
    *,
    alpha: float = -1.0,
    eps: float = 1e-6,
    form: str = "generalized_mean",
    points: Sequence[Tensor] | None = None,
) -> Tensor:
    """The weighted Hausdorff distance of every group, ``(N, C)`` float64, differentiable by ``pair.p``.

    ``sum_x u p_x min_t d(x, t) / (sum_x u p_x + eps) + mean_t M_t``, ``d`` the Euclidean distance in pixels and
    ``d_max`` the diagonal. ``M_t`` is the generalized mean of exponent alpha over the pixels x, weighted by u, of
    ``p_x d(x, t) + (1 - p_x) d_max + eps``; for ``form="power_min"`` it is the minimum of
    ``(d + eps) / (p_x^4 + eps / d_max)``, at most d_max. A minimum passes its gradient to the first pixel that
    attains it.

    Args:
        pair: probabilities and target, from :func:`~segfuse.ops._hard_pair.hard_pair`.
        alpha: exponent of the mean, below 0; ``-inf`` is the minimum.
        eps: keeps quotients finite.
        form: ``"generalized_mean"`` or ``"power_min"``.
        points: coordinates ``(number, spatial axes)`` of every group, row-major. Default: the pixels of the target,
            each with its weight u. A group without points has distance d_max and no gradient; one without valid
            pixels 0.
    Raises:
        ValueError: a setting or a coordinate out of range.

    No pair of a pixel and a point is stored; the time is proportional to their number.
    Source: Ribera et al. 2019 (arXiv 1806.07564).
    """
    check(alpha, eps, form)
    if points is not None:
        points = check_points(points, (*pair.groups, *pair.p.shape[2:]), pair.p.device)
    from ..backends.reference import pairwise_hausdorff as reference

    return by_group(
        pair,
        pick("pairwise_hausdorff", pair.p).forward,
        reference.losses,
        alpha=float(alpha),
        eps=float(eps),
        form=form,
        points=points,
    )
