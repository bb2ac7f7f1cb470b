"""The door for ``torch.compile``: a loss is one operator of a graph, without a break.

A graph holds the name of a loss and calls the kernels that eager code calls. The backward operator of
a formula on sums gets the sums from the forward one; for every other loss it runs the forward pass again.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._traced import PROCESS, plainly, traced, tracing, with_autograd
from ._transformed import transformed
from .ops.formula import hold, native_backward, native_forward

_numbers = itertools.count()
_losses: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def register(loss: Any) -> str:
    """A name under which compiled graphs find the loss. No other process has it: a graph that torch.compile keeps on
    disk would be taken for that of another loss, whose sums have other shapes."""
    name = f"{PROCESS}-{next(_numbers)}"
    _losses[name] = loss
    return name


def evaluate(
    loss: Any,
    input: Tensor,
    target: Tensor | Sequence[Tensor],
    weight_map: Tensor | None = None,
    mask: Tensor | None = None,
    distance_map: Tensor | None = None,
    instances: Tensor | None = None,
    return_terms: bool = False,
) -> Any:
    """What ``loss(input, target, ...)`` returns, as one operator of a graph."""
    points: list[Tensor] = []
    if not isinstance(target, Tensor):  # of the weighted Hausdorff distance
        points, target = list(target), torch.zeros_like(input, dtype=torch.uint8)
    value, terms, _ = _forward(
        loss.compiled_name,
        input,
        target,
        points,
        list(loss.parameters()),
        return_terms,
        weight_map,
        mask,
        distance_map,
        instances,
    )
    if not return_terms:
        return value
    return value, dict(zip(loss.reported(), terms.detach().unbind(), strict=True))


def _keeps_sums(loss: Any) -> bool:
    """The forward operator gives the sums to the backward one."""
    return loss.fusable and loss.measurer is None and loss.reduction != "none"


def _eager(
    loss: Any, input: Tensor, target: Tensor, points: Sequence[Tensor], maps: Sequence[Tensor | None], **how: Any
) -> Any:
    names = ("weight_map", "mask", "distance_map", "instances")
    given = {name: value for name, value in zip(names, maps, strict=True) if value is not None}
    return loss(input, points or target, **given, **how)


_INPUTS = "str name, Tensor input, Tensor target, Tensor[] points, Tensor[] parameters"
_MAPS = "Tensor? weight_map, Tensor? mask, Tensor? distance_map, Tensor? instances"


@torch.library.custom_op(
    "segfuse::loss", mutates_args=(), schema=f"({_INPUTS}, bool with_terms, {_MAPS}) -> (Tensor, Tensor, Tensor)"
)
def _forward(
    name: str,
    input: Tensor,
    target: Tensor,
    points: Sequence[Tensor],
    parameters: Sequence[Tensor],
    with_terms: bool,
    *maps: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, terms and sums; empty where not asked for or not kept."""
    loss = _losses[name]
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    no_terms, no_sums = input.new_empty(0, dtype=dtype), input.new_empty(0, dtype=torch.float64)
    with with_autograd(), torch.no_grad():  # formulas are differentiated on the way
        if _keeps_sums(loss):
            x, call = loss.prepare(input, target, *maps[:3])
            g, plan = call.geometry, call.formula.plan
            if call.backend is not None:
                terms = input.new_empty(len(call.formula.outputs) - 1, dtype=torch.float64) if with_terms else None
                value, sums, _, _ = native_forward(call, x, parameters, terms, False)
                if terms is not None and not len(terms):
                    terms = value.detach().to(torch.float64).reshape(1)
                return value, no_terms if terms is None else terms.to(dtype), sums
            sums = input.new_zeros((plan.rows, *g.shape[:2]), dtype=torch.float64)
        else:
            sums = no_sums
        value, named = _eager(loss, input, target, points, maps, return_terms=True)
    terms = torch.stack([t.reshape(()) for t in named.values()]).to(dtype) if with_terms else no_terms
    return value.clone(), terms, sums


@_forward.register_fake
def _(
    name: str,
    input: Tensor,
    target: Tensor,
    points: Sequence[Tensor],
    parameters: Sequence[Tensor],
    with_terms: bool,
    *maps: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    loss = _losses[name]
    _, g = loss.check(input, target, *maps[:3])
    g = replace(g, shape=(g.shape[0], int(g.shape[1]), *g.shape[2:]))  # one graph for each number of classes
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    rows = loss.formula_for(g).plan.rows if _keeps_sums(loss) else None
    return (
        input.new_empty(loss.value_shape(g), dtype=dtype),
        input.new_empty(len(loss.reported()) if with_terms else 0, dtype=dtype),
        input.new_empty((0,) if rows is None else (rows, *g.shape[:2]), dtype=torch.float64),
    )


@torch.library.custom_op(
    "segfuse::loss_backward",
    mutates_args=(),
    schema=f"({_INPUTS}, Tensor grad, Tensor sums, {_MAPS}) -> (Tensor, Tensor[])",
)
def _backward(
    name: str,
    input: Tensor,
    target: Tensor,
    points: Sequence[Tensor],
    parameters: Sequence[Tensor],
    grad: Tensor,
    sums: Tensor,
    *maps: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    loss = _losses[name]
    if _keeps_sums(loss):
        x, call = loss.prepare(input, target, *maps[:3])
        if call.backend is not None:
            first, rest = native_backward(call, x, parameters, hold(parameters), sums, grad, None, True)
            assert first is not None
            return first, [g.clone() for g in rest]
    with with_autograd():
        input = input.detach().requires_grad_()
        value = _eager(loss, input, target, points, maps)
        first, *rest = torch.autograd.grad(value, [input, *loss.parameters()], grad, allow_unused=True)
    first = torch.zeros_like(input) if first is None else first
    return first, [torch.zeros_like(p) if g is None else g for g, p in zip(rest, parameters, strict=True)]


@_backward.register_fake
def _(
    name: str, input: Tensor, target: Tensor, points: Sequence[Tensor], parameters: Sequence[Tensor], *rest: Tensor
) -> tuple[Tensor, list[Tensor]]:
    return torch.empty_like(input), [torch.empty_like(p) for p in parameters]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.name, input, target, points, parameters, _, *maps = inputs
    ctx.points = len(points)
    ctx.save_for_backward(input, target, output[2], *maps, *points, *parameters)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    input, target, sums, *rest = ctx.saved_tensors
    maps, points, parameters = rest[:4], rest[4 : 4 + ctx.points], rest[4 + ctx.points :]
    first, others = _backward(ctx.name, input, target, points, parameters, grad, sums, *maps)
    return None, first, None, [None] * ctx.points, others, None, None, None, None, None


def _refuse(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "a compiled loss has no second derivatives. Try: torch.compiler.disable(loss), whose eager call has them"
    )


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(_refuse, setup_context=lambda ctx, inputs, output: None)


def doors(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The ``forward`` of a loss, and what stands for it where torch compiles, traces or transforms the call."""

    @functools.wraps(forward)
    def call(self: Any, input: Any, target: Any, **given: Any) -> Any:
        if torch.compiler.is_compiling():
            if torch.onnx.is_in_onnx_export():
                return plainly(forward, self, input, target, **given)
            if not isinstance(input, Tensor):  # a list of outputs is traced
                return forward(self, input, target, **given)
            return evaluate(self, input, target, **given)
        if torch._C._are_functorch_transforms_active():
            return transformed(forward, self, input, target, given)
        if tracing():
            return traced(forward, self, input, target, **given)
        return forward(self, input, target, **given)

    return call
