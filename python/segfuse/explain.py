"""Which path a call takes, and why."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from .backends import forced, why_not
from .losses._base import CompoundLoss, Loss
from .ops import pixel_stats


def explain(loss: Loss, input: Tensor, target: Tensor) -> str:
    """Says in words which kernels ``loss(input, target)`` runs on, and why not on faster ones.

    Raises:
        ValueError: the arguments do not fit the loss.
    """
    if isinstance(loss, CompoundLoss) and not loss.fusable:
        lines = [f"{name}: {explain(term, input, target)}" for name, term in loss.terms.items()]
        return "its terms do not share a pass\n  " + "\n  ".join(line.replace("\n", "\n  ") for line in lines)
    own = loss.explanation(input, target)
    if own is not None:
        return own
    x, call = loss.prepare(input, target, None, None)
    g, formula, backend = call.geometry, call.formula, call.backend
    sums = [*formula.plan.moments, *(f"{t.kind}({t.a:g})" for t in formula.plan.terms)]
    ahead = backend is not None and call.linear
    kernels = _name(pixel_stats.backend(x.input, g, formula.plan))
    passes = "one pass that also writes the gradient" if ahead else "one pass forward, one backward"
    if backend is not None:
        finish = f"{_name(backend)}: {formula.length} traced operations in the same call"
    else:
        finish = "torch operations: " + (formula.why_not or f"{kernels} has no other way for this formula")
    return (
        f"mode {g.mode}, {g.activation}; pixel_stats on {kernels}: {passes}\n"
        f"sums: {', '.join(sums)}\nformula on {finish}{_hint(x.input)}"
    )


def _hint(input: Tensor) -> str:
    """What would make this call faster, where the C++ extension is missing."""
    reasons = why_not("pixel_stats")
    if forced() or input.is_cuda or reasons["cpp"] is None:
        return ""
    return f"\ncpp: {reasons['cpp']}" + (f"\nnumba: {reasons['numba']}" if reasons["numba"] else "")


def _name(module: ModuleType) -> str:
    return module.__name__.split(".")[-2]
