"""Which path a call takes, and why."""

from __future__ import annotations

from torch import Tensor

from .backends import pick
from .losses._base import CompoundLoss, Loss
from .ops.formula import path


def explain(loss: Loss, input: Tensor, target: Tensor) -> str:
    """Says in words which kernels ``loss(input, target)`` runs on, and why not on faster ones.

    Raises:
        ValueError: the arguments do not fit the loss.
    """
    if isinstance(loss, CompoundLoss) and not loss.fusable:
        lines = [f"{name}: {explain(term, input, target)}" for name, term in loss.terms.items()]
        return "its terms do not share a pass\n  " + "\n  ".join(line.replace("\n", "\n  ") for line in lines)
    first = next(iter(loss.terms.values())) if isinstance(loss, CompoundLoss) else loss
    x, g = first.check(input, target, None, None)
    formula = loss.formula_for(g)
    backend, why = path(x, formula)
    sums = [*formula.plan.moments, *(f"{t.kind}({t.a:g})" for t in formula.plan.terms)]
    passes = "one pass that also writes the gradient" if formula.linear and backend != "torch" else "one pass, and one for the gradient"
    return (
        f"mode {g.mode}, {g.activation}; pixel_stats on {pick('pixel_stats', x.input).__name__.split('.')[-2]}: {passes}\n"
        f"sums: {', '.join(sums)}\nformula on {backend}: {why}"
    )
