"""top_k: the largest values of a loss map, and their gradient alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import pick
from . import pixel_stats as op
from .pixel_stats import Geometry, Plan, Tensors


class Selection(NamedTuple):
    chosen: Tensor  # (R, M) uint8, 1 where a value is among the largest of its row
    total: Tensor  # (R,) float64, their sum
    number: Tensor  # (R,) float64, how many they are


def select(values: Tensor, valid: Tensor | None, percent: float) -> Selection:
    """The ``percent`` largest of every row, at least one: ``max(1, floor(percent M / 100))`` of M valid values.

    Args:
        values: ``(R, M)`` float32 or float64, contiguous; without a gradient.
        valid: ``(R, M)`` bool, contiguous; which take part. Default: all.

    Of equal values the first are chosen. NaN counts as larger than everything.
    """
    return pick("top_k", values).forward(values, valid, percent)


class _TopK(torch.autograd.Function):
    """The largest pixel losses, added up. The coefficients are constants."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        x: Tensors,
        g: Geometry,
        plan: Plan,
        coefficient: Tensor,
        valid: Tensor | None,
        percent: float,
        rows: int,
        mean: bool,
    ) -> Tensor:
        loss, invalid = op.backend(input, g, plan, map=True).loss_map(x, g, plan, coefficient)
        if invalid:
            op.raise_invalid(x, g)
        chosen, total, number = select(loss.reshape(rows, loss.numel() // max(rows, 1)), valid, percent)
        by = number.clamp_(min=1) if mean else None
        value = total if by is None else total / by
        ctx.geometry, ctx.plan = g, plan
        ctx.save_for_backward(*x._replace(input=input), coefficient, chosen, by)
        return (value.reshape(()) if rows == 1 else value.sum() / max(rows, 1) if mean else value.sum()).to(loss.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *x, coefficient, chosen, number = ctx.saved_tensors
        by_row = grads[0].double() if number is None else (grads[0] / (number * len(number)))[:, None]
        chosen = chosen.reshape(ctx.geometry.map_shape)
        grad = op.backward(Tensors(*x), ctx.geometry, ctx.plan, coefficient * by_row, chosen)
        return grad, None, None, None, None, None, None, None, None


def top_k(
    x: Tensors,
    g: Geometry,
    plan: Plan,
    coefficient: Tensor,
    valid: Tensor | None,
    percent: float,
    *,
    per_sample: bool,
    mean: bool,
) -> Tensor:
    """The sum of the largest pixel losses of every sample, or of the batch; or the mean of their means.

    ``valid`` has a row for each selection, as in :func:`select`. Differentiable.
    """
    rows = g.shape[0] if per_sample else 1
    return _TopK.apply(x.input, x, g, plan, coefficient, valid, percent, rows, mean)
