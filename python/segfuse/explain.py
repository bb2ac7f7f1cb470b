"""Which path a call takes, and why."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .backends import forced, pick, why_not
from .losses._base import CompoundLoss, Loss
from .ops import pixel_stats


def explain(loss: Loss, input: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> str:
    """Says in words which kernels ``loss(input, target)`` runs on, and why not on faster ones.

    Of several outputs the first is explained.

    Raises:
        ValueError: the arguments do not fit the loss.
    """
    if not isinstance(input, Tensor):
        return explain(loss, input[0], target if isinstance(target, Tensor) else target[0])
    if not isinstance(target, Tensor):  # points
        target = torch.zeros_like(input)
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
    kernels = _name(pixel_stats.backend(x.input, g, formula.plan, map=loss.by_pixel))
    head = f"mode {g.mode}, {g.activation}; "
    if call.measurer is not None:
        distances = _name(pick("distance_transform_edt", x.input))
        head += f"distance_transform_edt on {distances} unless distance_map= is given; "
    if loss.by_pixel:
        return f"{head}pixel_stats on {kernels}: the loss of every pixel, and one pass for the gradient{_hint(x.input)}"
    passes = "one pass that also writes the gradient" if ahead else "one pass forward, one backward"
    if backend is not None:
        finish = f"{_name(backend)}: {formula.length} traced operations in the same call"
    else:
        finish = "torch operations: " + (formula.why_not or f"{kernels} has no other way for this formula")
    return f"{head}pixel_stats on {kernels}: {passes}\nsums: {', '.join(sums)}\nformula on {finish}{_hint(x.input)}"


def _hint(input: Tensor) -> str:
    """What would make this call faster, where the C++ extension is missing."""
    reasons = why_not("pixel_stats")
    if forced() or input.is_cuda or reasons["cpp"] is None:
        return ""
    return f"\ncpp: {reasons['cpp']}" + (f"\nnumba: {reasons['numba']}" if reasons["numba"] else "")


def _name(module: ModuleType) -> str:
    return module.__name__.split(".")[-2]
