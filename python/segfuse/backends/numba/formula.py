"""A loss that is linear in the sums of the prediction: one pass gives its value and writes its gradient.

The formula itself, and that of every other loss, is torch operations on the sums: beside a pass they cost little.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.formula import Call, tensor_stats
from ...ops.pixel_stats import COUNTS, Tensors
from . import pixel_stats
from ._run import refuses as refuses

AHEAD = True


def fits(call: Call, x: Tensors) -> bool:
    return call.formula.linear


def _value(call: Call, sums: Tensor) -> tuple[Tensor, list[Tensor]]:
    return call.formula.loss(tensor_stats(sums, call.formula.plan, call.geometry))


def _derivative(call: Call, sums: Tensor, grad: Tensor | None) -> Tensor:
    """d value / d sums, ``(K, N, C)``."""
    with torch.enable_grad():
        sums = sums.detach().requires_grad_()
        value = _value(call, sums)[0]
        by = torch.ones_like(value) if grad is None else grad.to(value.dtype).reshape(value.shape)
        return torch.autograd.grad(value, sums, by)[0]


def _assumed(call: Call, x: Tensors) -> Tensor:
    """What multiplies the sums, from the target; that no pixel is ignored is checked by the pass itself."""
    plan, g = call.formula.plan, call.geometry
    known = torch.zeros((plan.rows, *g.shape[:2]), dtype=torch.float64, device="cpu")
    if call.count_first:
        known[: plan.counts.rows] = pixel_stats.forward(x, g, plan.counts)[0]
    elif "count" in plan.moments:
        known[plan.row("count")] = g.pixels
    return _derivative(call, known, None)


def forward(
    call: Call, x: Tensors, parameters: Tensor | None, terms: Tensor | None, ahead: bool
) -> tuple[Tensor, int, Tensor, Tensor | None]:
    """The value in its own shape, the number of targets or weights out of range, the sums and, if asked, a gradient."""
    plan, g = call.formula.plan, call.geometry
    grad = torch.empty_like(x.input) if ahead else None
    if grad is None:
        sums, invalid = kept, _ = pixel_stats.forward(x, g, plan)
    else:
        assumed = _assumed(call, x)
        sums, invalid = pixel_stats.forward(x, g, plan, grad=grad, coefficient=assumed)
        kept = torch.cat([sums, assumed])
    with torch.no_grad():
        value, parts = _value(call, sums)
        if terms is not None:
            for k, part in enumerate(parts):
                terms[k] = torch.as_tensor(part).sum()
    return value.reshape(call.value_shape).to(call.dtype), invalid, kept, grad


def backward(
    call: Call, x: Tensors, parameters: Tensor | None, sums: Tensor, grad: Tensor, ahead: Tensor | None, wanted: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of the input, where wanted. ``ahead`` is the gradient that forward wrote."""
    if not wanted:
        return None, None
    plan, g = call.formula.plan, call.geometry
    coefficient, assumed = _derivative(call, sums[: plan.rows], grad), sums[plan.rows :]
    if len(assumed):
        first = sum(name in COUNTS for name in plan.moments)  # the counts have no part in the gradient
        factor = _ratio(coefficient[first:], assumed[first:])
        if factor is not None:
            if ahead is None:  # it was handed out before: the same one again
                ahead = pixel_stats.backward(x, g, plan, assumed)
            return (ahead if factor == 1 else ahead.mul_(factor)), None
    return pixel_stats.backward(x, g, plan, coefficient), None


def _ratio(a: Tensor, b: Tensor) -> float | None:
    """r with a = r b everywhere, if there is one."""
    there = b != 0
    r = (a[there][0] / b[there][0]).item() if there.any() else 1.0
    return r if bool(((a - r * b).abs() <= 1e-14 * a.abs()).all()) else None
