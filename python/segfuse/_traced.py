"""The doors for ``torch.jit`` and ONNX: a loss is one operator of a graph, and torch operations in one of ONNX."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional, TypeVar, cast

import torch
from torch import Tensor, nn

from .backends import use_backend

_F = TypeVar("_F", bound=Callable[..., Any])
PROCESS = uuid.uuid4().hex
_kept: dict[str, Any] = {}  # what traced and scripted graphs call by name, for as long as the process lives
_here = threading.local()


def tracing() -> bool:
    """Whether ``torch.jit.trace`` is at work, outside of the operator."""
    return torch.jit.is_tracing() and not getattr(_here, "inside", False)


def keep(loss: Any, name: Any = None) -> str:
    """The name under which graphs of torch.jit find the loss; another process has no such name."""
    name = f"{PROCESS}-{name or id(loss)}"
    _kept[name] = loss
    return name


def traceable(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same method, as one operator of a trace."""

    @functools.wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not tracing():
            return forward(self, *args, **kwargs)
        return traced(forward, self, *args, **kwargs)

    return call


def traceable_function(function: _F) -> _F:
    """The same function of tensors and settings, whose result is a tensor, as one operator of a trace."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not tracing():
            return function(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        tensors = {name: x for name, x in given.items() if isinstance(x, Tensor)}
        settings = {name: x for name, x in given.items() if name not in tensors}
        name = keep(functools.partial(function, **settings), f"{function.__name__}({settings})")
        return _jit(name, list(tensors.values()), " ".join(tensors), [])

    return cast(_F, call)


def plainly(forward: Callable[..., Any], loss: Any, *args: Any, **kwargs: Any) -> Any:
    """The loss in torch operations, for ONNX, which knows no others.

    Raises:
        NotImplementedError: it is no formula on sums, or on those of a distance map that is not given.
    """
    in_sums = getattr(loss, "fusable", True) or hasattr(loss, "terms")  # the terms of a sum are asked one by one
    if not in_sums or (getattr(loss, "measurer", None) is not None and kwargs.get("distance_map") is None):
        raise NotImplementedError(
            f"{type(loss).__name__} has no form in ONNX, which takes formulas on sums"
            f"{', and no distance transforms' if in_sums else ''}. "
            f"Try: {'distance_map=..., or ' if in_sums else ''}export the network without its loss"
        )
    with use_backend("reference"):
        return forward(loss, *args, **kwargs)


def traced(forward: Callable[..., Any], loss: Any, *args: Any, **kwargs: Any) -> Any:
    if torch.onnx.is_in_onnx_export():
        return plainly(forward, loss, *args, **kwargs)
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


@contextlib.contextmanager
def with_autograd() -> Iterator[None]:
    """Inside an operator autograd and vmap are switched off; this switches them on."""
    keys = torch._C.DispatchKey
    with contextlib.ExitStack() as stack:
        for key in (
            keys.AutogradFunctionality,
            keys.AutogradOther,
            keys.FuncTorchDynamicLayerFrontMode,
            keys.FuncTorchDynamicLayerBackMode,
            keys.FuncTorchBatched,
            keys.FuncTorchBatchedDecomposition,
        ):
            stack.enter_context(torch._C._SetExcludeDispatchKeyGuard(key, False))
        stack.enter_context(torch.enable_grad())
        yield


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
    with with_autograd(), torch.no_grad():
        value = _eager(name, tensors, keywords)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"a trace holds operators with one tensor as result; got {type(value).__name__}. Try: return_indices=False"
        )
    return value.clone()


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
