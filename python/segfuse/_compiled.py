"""The doors for ``torch.compile``, ``torch.jit`` and ``torch.func``: a loss is one operator there.

A graph holds the name of a loss and calls the kernels that eager code calls, without a break. The backward operator of
a formula on sums gets the sums from the forward one; for every other loss it runs the forward pass again.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .backends import use_backend
from .ops.formula import hold, native_backward, native_forward

_numbers = itertools.count()
_losses: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def register(loss: Any) -> str:
    """A name under which compiled graphs find the loss."""
    name = str(next(_numbers))
    _losses[name] = loss
    return name


def evaluate(
    loss: Any,
    input: Tensor,
    target: Tensor,
    weight_map: Tensor | None = None,
    mask: Tensor | None = None,
    distance_map: Tensor | None = None,
    return_terms: bool = False,
) -> Any:
    """What ``loss(input, target, ...)`` returns, as one operator of a graph."""
    value, terms, _ = _forward(
        loss.compiled_name, input, target, weight_map, mask, distance_map, list(loss.parameters()), return_terms
    )
    if not return_terms:
        return value
    return value, dict(zip(loss.reported(), terms.detach().unbind(), strict=True))


@contextlib.contextmanager
def _autograd() -> Iterator[None]:
    """Inside an operator autograd is switched off; this switches it on."""
    keys = torch._C.DispatchKey
    guard = torch._C._SetExcludeDispatchKeyGuard
    with guard(keys.AutogradFunctionality, False), guard(keys.AutogradOther, False), torch.enable_grad():
        yield


def _keeps_sums(loss: Any) -> bool:
    """The forward operator gives the sums to the backward one."""
    return loss.fusable and loss.measurer is None and loss.reduction != "none"


def _given(weight_map: Tensor | None, mask: Tensor | None, distance_map: Tensor | None) -> dict[str, Tensor]:
    maps = {"weight_map": weight_map, "mask": mask, "distance_map": distance_map}
    return {name: value for name, value in maps.items() if value is not None}


_ARGUMENTS = (
    "str name, Tensor input, Tensor target, Tensor? weight_map, Tensor? mask, Tensor? distance_map, Tensor[] parameters"
)


@torch.library.custom_op(
    "segfuse::loss", mutates_args=(), schema=f"({_ARGUMENTS}, bool with_terms) -> (Tensor, Tensor, Tensor)"
)
def _forward(
    name: str,
    input: Tensor,
    target: Tensor,
    weight_map: Tensor | None,
    mask: Tensor | None,
    distance_map: Tensor | None,
    parameters: Sequence[Tensor],
    with_terms: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, terms and sums; empty where not asked for or not kept."""
    loss = _losses[name]
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    no_terms, no_sums = input.new_empty(0, dtype=dtype), input.new_empty(0, dtype=torch.float64)
    with _autograd(), torch.no_grad():  # formulas are differentiated on the way
        if _keeps_sums(loss):
            x, call = loss.prepare(input, target, weight_map, mask, distance_map)
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
        value, named = loss(input, target, **_given(weight_map, mask, distance_map), return_terms=True)
    terms = torch.stack([t.reshape(()) for t in named.values()]).to(dtype) if with_terms else no_terms
    return value.clone(), terms, sums


@_forward.register_fake
def _(
    name: str,
    input: Tensor,
    target: Tensor,
    weight_map: Tensor | None,
    mask: Tensor | None,
    distance_map: Tensor | None,
    parameters: Sequence[Tensor],
    with_terms: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss = _losses[name]
    _, g = loss.check(input, target, weight_map, mask, distance_map)
    g = replace(g, shape=(g.shape[0], int(g.shape[1]), *g.shape[2:]))  # one graph for each number of classes
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    rows = loss.formula_for(g).plan.rows if _keeps_sums(loss) else None
    return (
        input.new_empty(loss.value_shape(g), dtype=dtype),
        input.new_empty(len(loss.reported()) if with_terms else 0, dtype=dtype),
        input.new_empty((0,) if rows is None else (rows, *g.shape[:2]), dtype=torch.float64),
    )


@torch.library.custom_op(
    "segfuse::loss_backward", mutates_args=(), schema=f"({_ARGUMENTS}, Tensor grad, Tensor sums) -> (Tensor, Tensor[])"
)
def _backward(
    name: str,
    input: Tensor,
    target: Tensor,
    weight_map: Tensor | None,
    mask: Tensor | None,
    distance_map: Tensor | None,
    parameters: Sequence[Tensor],
    grad: Tensor,
    sums: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    loss = _losses[name]
    if _keeps_sums(loss):
        x, call = loss.prepare(input, target, weight_map, mask, distance_map)
        if call.backend is not None:
            first, rest = native_backward(call, x, parameters, hold(parameters), sums, grad, None, True)
            assert first is not None
            return first, [g.clone() for g in rest]
    with _autograd():
        input = input.detach().requires_grad_()
        value = loss(input, target, **_given(weight_map, mask, distance_map))
        first, *rest = torch.autograd.grad(value, [input, *loss.parameters()], grad, allow_unused=True)
    first = torch.zeros_like(input) if first is None else first
    return first, [torch.zeros_like(p) if g is None else g for g, p in zip(rest, parameters, strict=True)]


@_backward.register_fake
def _(
    name: str,
    input: Tensor,
    target: Tensor,
    weight_map: Tensor | None,
    mask: Tensor | None,
    distance_map: Tensor | None,
    parameters: Sequence[Tensor],
    grad: Tensor,
    sums: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    return torch.empty_like(input), [torch.empty_like(p) for p in parameters]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    name, *tensors, parameters, _ = inputs
    ctx.name = name
    ctx.save_for_backward(*tensors, output[2], *parameters)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    *tensors, sums = ctx.saved_tensors[:6]
    first, rest = _backward(ctx.name, *tensors, list(ctx.saved_tensors[6:]), grad, sums)
    return None, first, None, None, None, None, rest, None


def _refuse(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "a compiled loss has no second derivatives. Try: torch.compiler.disable(loss), whose eager call has them"
    )


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(_refuse, setup_context=lambda ctx, inputs, output: None)


def _plainly(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The loss in torch operations, for ONNX, which knows no others. Only formulas on sums have such a form."""
    with use_backend("reference"):
        return forward(*args, **kwargs)


def doors(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The ``forward`` of a loss, and what stands for it where torch compiles, traces or transforms the call."""

    @functools.wraps(forward)
    def call(self: Any, input: Any, target: Any, **given: Any) -> Any:
        if torch.compiler.is_compiling():
            if torch.onnx.is_in_onnx_export():
                return _plainly(forward, self, input, target, **given)
            if not isinstance(input, Tensor):  # a list of outputs is traced
                return forward(self, input, target, **given)
            return (evaluate if self.compiles else torch.compiler.disable(forward))(self, input, target, **given)
        if torch._C._are_functorch_transforms_active():
            return _transformed(forward, self, input, target, given)
        if tracing():
            return _traced(forward, self, input, target, **given)
        return forward(self, input, target, **given)

    return call


# ------------------------------------------------------------------------------------------- torch.func


def _transformed(forward: Callable[..., Any], loss: Any, input: Any, target: Any, given: dict[str, Any]) -> Any:
    """The loss under ``torch.func.grad``, ``vmap`` and the like."""
    leaves, form = tree_flatten((input, dict(loss.named_parameters()), target, given))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    differentiable = len(tree_flatten((input, dict(loss.named_parameters())))[0])
    result_form: Any = None

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        nonlocal result_form
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        input, parameters, target, given = tree_unflatten(filled, form)
        if parameters:
            result = torch.func.functional_call(loss, parameters, (input, target), given)
        else:
            result = forward(loss, input, target, **given)
        values, result_form = tree_flatten(result)
        return tuple(values)

    values = _Opaque.apply(_Function(run, tuple(range(differentiable))), *(leaves[place] for place in places))
    return tree_unflatten(list(values), result_form)


@dataclass(frozen=True)
class _Function:
    """A function of plain tensors, and which of them it can be differentiated by."""

    run: Callable[..., tuple[Tensor, ...]]
    wrt: tuple[int, ...]

    def pulled_back(self, count: int, outputs: int) -> _Function:
        """The function of its ``count`` arguments and the gradients of its results that gives those of ``wrt``."""

        def run(*given: Tensor) -> tuple[Tensor, ...]:
            arguments, grads = list(given[:count]), given[count:]
            create_graph = torch.is_grad_enabled() and any(x.requires_grad for x in given)
            for i in self.wrt:
                if not arguments[i].requires_grad:
                    arguments[i] = arguments[i].detach().requires_grad_()
            with torch.enable_grad():
                results = self.run(*arguments)
            wanted = [arguments[i] for i in self.wrt]
            pairs = [(y, grad) for y, grad in zip(results, grads, strict=True) if y.requires_grad]
            if not pairs:
                return tuple(torch.zeros_like(x) for x in wanted)
            outputs, grads = zip(*pairs)
            found = torch.autograd.grad(outputs, wanted, grads, create_graph=create_graph, allow_unused=True)
            return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True))

        return _Function(run, (*self.wrt, *range(count, count + outputs)))


class _Opaque(torch.autograd.Function):
    """A function that torch.func sees as a whole: its derivative is another, and over a batch it runs in a loop."""

    @staticmethod
    def forward(function: _Function, *tensors: Tensor) -> tuple[Tensor, ...]:
        return function.run(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        tensors = ctx.saved_tensors
        found = dict(
            zip(ctx.function.wrt, _Opaque.apply(ctx.function.pulled_back(len(tensors), len(grads)), *tensors, *grads))
        )
        return None, *(found.get(i) for i in range(len(tensors)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], function: _Function, *tensors: Tensor) -> Any:
        rows = [
            _Opaque.apply(function, *(x if d is None else x.select(d, i) for x, d in zip(tensors, in_dims[1:])))
            for i in range(info.batch_size)
        ]
        return tuple(torch.stack(column) for column in zip(*rows)), (0,) * len(rows[0])


# ------------------------------------------------------------------------------------------- torch.jit

_PROCESS = uuid.uuid4().hex
_kept: dict[str, Any] = {}  # what traced and scripted graphs call by name, for as long as the process lives
_here = threading.local()


def tracing() -> bool:
    """Whether ``torch.jit.trace`` is at work, outside of the operator."""
    return torch.jit.is_tracing() and not getattr(_here, "inside", False)


def keep(loss: Any) -> str:
    """The name under which graphs of torch.jit find the loss; another process has no such name."""
    name = f"{_PROCESS}-{id(loss)}"
    _kept[name] = loss
    return name


def traceable(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same method, as one operator of a trace."""

    @functools.wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        traced = tracing() and not torch.compiler.is_compiling()
        return _traced(forward, self, *args, **kwargs) if traced else forward(self, *args, **kwargs)

    return call


def _traced(forward: Callable[..., Any], loss: Any, *args: Any, **kwargs: Any) -> Any:
    if torch.onnx.is_in_onnx_export():
        return _plainly(forward, loss, *args, **kwargs)
    given = {name: x for name, x in kwargs.items() if x is not None and x is not False}
    tensors = [*(x for x in args if x is not None), *given.values()]
    if not all(isinstance(x, Tensor) for x in tensors):  # lists of outputs, traced one by one
        return forward(loss, *args, **kwargs)
    return _jit(keep(loss), tensors, " ".join(given), list(loss.parameters()))


class Scriptable:
    """Lets ``torch.jit.script`` take a loss: the graph holds its name and calls the kernels that eager code calls."""

    def __prepare_scriptable__(self) -> nn.Module:
        if list(self.parameters()):  # type: ignore[attr-defined]
            raise TypeError(
                f"{type(self).__name__} learns a parameter, which would get no gradient from a script. "
                "Try: torch.jit.trace"
            )
        return _Script(keep(self))


class _Script(nn.Module):
    """What stands for a loss in a scripted module (and, as torch has it, in the module that was scripted)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, input: Tensor, target: Tensor, mask: Optional[Tensor] = None) -> Tensor:  # noqa: UP045 torch.jit
        tensors = [input, target]
        if mask is not None:
            tensors.append(mask)
        return torch.ops.segfuse.jit(self.name, tensors, "", [])


def _eager(name: str, tensors: Sequence[Tensor], keywords: str) -> Tensor:
    """The value of a kept loss; the last tensors are its keyword arguments."""
    before, _here.inside = getattr(_here, "inside", False), True
    try:
        names = keywords.split()
        n = len(tensors) - len(names)
        value: Tensor = _kept[name](*tensors[:n], **dict(zip(names, tensors[n:])))
    finally:
        _here.inside = before
    return value


@torch.library.custom_op(
    "segfuse::jit",
    mutates_args=(),
    schema="(str name, Tensor[] tensors, str keywords, Tensor[] parameters) -> Tensor",
)
def _jit(name: str, tensors: Sequence[Tensor], keywords: str, parameters: Sequence[Tensor]) -> Tensor:
    """The value; ``parameters`` are those of the loss, so that they get their gradient."""
    if name not in _kept:
        raise RuntimeError(
            "a traced or scripted loss lives in the process that made it, and this is another. "
            "Try: trace or script the loss here, and save the model without it"
        )
    with _autograd(), torch.no_grad():
        return _eager(name, tensors, keywords).clone()


def _save_call(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.name, tensors, ctx.keywords, parameters = inputs
    ctx.parameters = len(parameters)
    ctx.save_for_backward(*tensors)


def _differentiate_call(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Runs the forward pass again."""
    tensors = [x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors]
    learned = list(_kept[ctx.name].parameters()) if ctx.parameters else []
    with torch.enable_grad():
        value = _eager(ctx.name, tensors, ctx.keywords)
    wanted = [x for x in (*tensors, *learned) if x.requires_grad]
    found = iter(torch.autograd.grad(value, wanted, grad, allow_unused=True))
    first, rest = ([next(found) if x.requires_grad else None for x in xs] for xs in (tensors, learned))
    return None, first, None, rest


_jit.register_autograd(_differentiate_call, setup_context=_save_call)
