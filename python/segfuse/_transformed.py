"""The door for ``torch.func``: a loss is one function, with derivatives of any order; ``vmap`` runs it in a loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


def transformed(forward: Callable[..., Any], loss: Any, input: Any, target: Any, given: dict[str, Any]) -> Any:
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
