"""Which path a call takes, and why."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .backends import pick
from .losses._base import CompoundLoss, Loss
from .losses._boundary import HardLoss
from .ops import pixel_stats


def explain(loss: Loss, input: Tensor, target: Tensor) -> str:
    """Says in words which kernels ``loss(input, target)`` runs on, and why not on faster ones.

    Raises:
        ValueError: the arguments do not fit the loss.
    """
    if isinstance(loss, CompoundLoss) and not loss.fusable:
        lines = [f"{name}: {explain(term, input, target)}" for name, term in loss.terms.items()]
        return "its terms do not share a pass\n  " + "\n  ".join(line.replace("\n", "\n  ") for line in lines)
    if isinstance(loss, HardLoss):
        x, g = loss.check(input, target, None, None)
        wide = x.input if x.input.dtype == torch.float64 else x.input.new_empty(0, dtype=torch.float32)
        return (
            f"mode {g.mode}, {g.activation} by torch; "
            f"{loss.op} on {_name(pick(loss.op, wide))}: a forward pass that also writes the gradient"
        )
    x, call = loss.prepare(input, target, None, None)
    g, formula, backend = call.geometry, call.formula, call.backend
    sums = [*formula.plan.moments, *(f"{t.kind}({t.a:g})" for t in formula.plan.terms)]
    ahead = formula.linear and backend is not None
    kernels = _name(pixel_stats.backend(x.input, g, formula.plan))
    passes = "one pass that also writes the gradient" if ahead else "one pass forward, one backward"
    if backend is not None:
        finish = f"{_name(backend)}: {formula.length} traced operations in the same call"
    else:
        finish = "torch operations: " + (formula.why_not or "the reference was asked for or is needed here")
    return (
        f"mode {g.mode}, {g.activation}; pixel_stats on {kernels}: {passes}\n"
        f"sums: {', '.join(sums)}\nformula on {finish}"
    )


def _name(module: ModuleType) -> str:
    return module.__name__.split(".")[-2]
