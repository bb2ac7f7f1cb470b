"""formula: the arithmetic on the sums of a pass, in one native call.

A loss is written once, as Python on the sums of :class:`PixelStats`. With tensors in it autograd differentiates it;
that is the definition. With :class:`Symbol` in it the same code writes down its operations, and the list is evaluated
natively, derivative included: on (N, C)-sized tensors torch operations cost more than the pass over a small batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backends import forced, pick
from . import pixel_stats as op
from .pixel_stats import COUNTS, Geometry, Plan, Row, Tensors, Term

Array = Any  # Tensor or Symbol
# The order of enum Op in csrc/cpp/formula.cpp.
# fmt: off
OPS = [
    "row", "parameter", "scalar", "vector", "numel", "size_n", "size_c", "class_index",
    "add", "sub", "mul", "div", "pow", "maximum", "minimum", "gt", "ge", "lt", "le", "eq", "ne",
    "neg", "log", "log1p", "exp", "expm1", "sqrt", "abs", "tanh", "sinh", "cosh", "lgamma",
    "where", "sum_n", "sum_c", "max_c", "tail", "head", "detach",
]
# fmt: on
NUMBER = {name: i for i, name in enumerate(OPS)}
BINARY, UNARY = OPS[8:21], OPS[21:32]


class Untraceable(TypeError):
    """The formula does something with its sums that only tensors can do."""


class Tape:
    """The instructions of one formula; equal instructions are written once, so losses in a sum share their work."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.code: list[tuple[str, Any, Any, Any, bool, int]] = []
        self.parameters: list[Tensor] = []
        self._known: dict[tuple[Any, ...], Symbol] = {}

    def emit(self, name: str, *operands: Any, n: bool = False, c: int = 0) -> Symbol:
        a, b, d = (*(o.index if isinstance(o, Symbol) else o for o in operands), None, None, None)[:3]
        line = (name, a, b, d, n, c)
        if line not in self._known:
            self.code.append(line)
            self._known[line] = Symbol(self, len(self.code) - 1, n, c)
        return self._known[line]

    def lift(self, x: Any) -> Symbol:
        if isinstance(x, Symbol):
            return x
        if isinstance(x, bool | int | float):
            return self.emit("scalar", float(x))
        raise Untraceable(f"a formula holds a {type(x).__name__} that is not a number")

    def parameter(self, x: Tensor) -> Symbol:
        number = next((i for i, known in enumerate(self.parameters) if known is x), len(self.parameters))
        if number == len(self.parameters):
            self.parameters.append(x)
        return self.emit("parameter", number)

    def broadcast(self, name: str, *operands: Any) -> Symbol:
        symbols = [self.lift(x) for x in operands]
        widths = {s.c for s in symbols} - {0}
        if len(widths) > 1:
            raise Untraceable("a formula mixes sums with and without the background class")
        return self.emit(name, *symbols, n=any(s.n for s in symbols), c=max(widths, default=0))


class Symbol:
    """One array of a formula: N or 1 rows; 1, C or C - 1 columns (``c`` = 0, 1, 2). Behaves like a 2-d tensor."""

    if TYPE_CHECKING:  # these and more are defined below

        def __sub__(self, other: Any) -> Symbol: ...
        def __mul__(self, other: Any) -> Symbol: ...
        def __rmul__(self, other: Any) -> Symbol: ...

    def __init__(self, tape: Tape, index: int, n: bool, c: int) -> None:
        self.tape, self.index, self.n, self.c = tape, index, n, c

    def __bool__(self) -> bool:
        raise Untraceable("a formula branches on the value of a sum; use torch.where")

    def __getitem__(self, key: Any) -> Symbol:
        if self.c == 1 and key == (slice(None), slice(1, None)):
            return self.tape.emit("tail", self, n=self.n, c=2)
        if self.c == 1 and key == (slice(None), slice(None, 1)):
            return self.tape.emit("head", self, n=self.n, c=0)
        raise Untraceable("a formula indexes its sums other than by [:, 1:] or [:, :1]")

    def sum(self, dim: int | None = None, keepdim: bool = False) -> Symbol:
        if dim is not None and not keepdim:
            raise Untraceable("sum over one axis needs keepdim=True in a formula")
        rows, columns = dim in (None, 0), dim in (None, 1, -1)
        x = self.tape.emit("sum_n", self, c=self.c) if rows and self.n else self
        return self.tape.emit("sum_c", x, n=x.n) if columns and x.c else x

    def size(self, dim: int) -> Symbol | float:
        if dim == 0:
            return self.tape.emit("size_n") if self.n else 1.0
        if self.c == 0:
            return 1.0
        columns = self.tape.emit("size_c")
        return columns if self.c == 1 else columns - 1

    def amax(self, dim: int, keepdim: bool = False) -> Symbol:
        """Carries no gradient."""
        if dim not in (1, -1) or not keepdim:
            raise Untraceable("amax is over classes, with keepdim=True, in a formula")
        if self.c == 2 and self.tape.classes == 1:
            raise Untraceable("a formula takes the largest of no class")
        return self.tape.emit("max_c", self, n=self.n) if self.c else self

    def detach(self) -> Symbol:
        return self.tape.emit("detach", self, n=self.n, c=self.c)

    def clamp(self, min: float | None = None, max: float | None = None) -> Symbol:
        x = self if min is None else self.tape.broadcast("maximum", self, min)
        return x if max is None else self.tape.broadcast("minimum", x, max)

    def square(self) -> Symbol:
        return self * self

    def mean(self, dim: int | None = None, keepdim: bool = False) -> Symbol:
        return mean(self, dim, keepdim)

    def where(self, condition: Any, other: Any) -> Symbol:
        return self.tape.broadcast("where", condition, self, other)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name == "where":
            tape = next(a.tape for a in args if isinstance(a, Symbol))
            return tape.broadcast("where", *args)
        if name in ("clamp", "sum", "mean", "amax", "square", "pow", *BINARY, *UNARY):
            self = next(a for a in args if isinstance(a, Symbol))
            if name in BINARY:
                return self.tape.broadcast(name, *args)
            return getattr(self, name)(*args[1:], **(kwargs or {}))
        raise Untraceable(f"a formula calls torch.{name}, which is not traced")


def _define(name: str, method: str, swapped: bool = False) -> None:
    def call(self: Symbol, *others: Any) -> Symbol:
        return self.tape.broadcast(name, *(reversed((self, *others)) if swapped else (self, *others)))

    setattr(Symbol, method, call)


for _name in BINARY:
    _define(_name, _name)
for _name in UNARY:
    _define(_name, _name)
for _name, _dunder in (("add", "add"), ("sub", "sub"), ("mul", "mul"), ("div", "truediv"), ("pow", "pow")):
    _define(_name, f"__{_dunder}__")
    _define(_name, f"__r{_dunder}__", swapped=True)
for _name in ("gt", "ge", "lt", "le", "eq", "ne"):
    _define(_name, f"__{_name}__")
_define("neg", "__neg__")
_define("abs", "__abs__")


# ------------------------------------------------------------------------------------------- words for formulas


def where(condition: Array, a: Array, b: Array) -> Array:
    """``a`` where the condition holds, else ``b``; either may be a number."""
    if isinstance(condition, Symbol):
        return condition.tape.broadcast("where", condition, a, b)
    like = a if isinstance(a, Tensor) else b if isinstance(b, Tensor) else torch.zeros((), dtype=torch.float64)
    return torch.where(
        condition,
        *(
            x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=like.dtype, device=condition.device)
            for x in (a, b)
        ),
    )


def ratio(a: Array, b: Array) -> Array:
    """``a / b``, and 0 (with gradient 0) where ``b`` is 0."""
    empty = b == 0
    if isinstance(empty, bool):
        return a * 0 if empty else a / b
    return where(empty, 0.0, a / where(empty, 1.0, b))


def mean(x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    """The mean over one axis or over both; 0 when there is nothing to average."""
    if isinstance(x, Symbol):
        sizes: list[Array] = [x.size(d) for d in ((0, 1) if dim is None else (dim % 2,))]
        size: Array = sizes[0] if len(sizes) == 1 else sizes[0] * sizes[1]
        return ratio(x.sum(dim, keepdim=keepdim), size)
    size = x.numel() if dim is None else x.shape[dim]
    total = x.sum() if dim is None else x.sum(dim, keepdim=keepdim)
    return total / size if size else total


class PixelStats:
    """The sums of one pass as a formula sees them: each name is an array ``(N, C)``, or ``(1, C)`` over a batch.

    ``tp fp fn tn`` are the soft confusion sums, ``pred`` and ``true`` the sizes of prediction and target, ``pred2`` and
    ``true2`` those of their squares, ``n`` the weighted number of valid pixels and ``count`` their plain number.
    ``focal(gamma)`` and ``power(a)`` are the pixel terms. A sum that is not named is not computed.
    """

    def __init__(
        self,
        fetch: Callable[[Row], Array],
        constant: Callable[[str, Any], Array],
        geometry: Geometry,
        steps: tuple[Callable[[Array], Array], ...] = (),
        soft_label: str = "product",
    ) -> None:
        self._fetch, self._constant, self.geometry, self._steps, self.soft_label = (
            fetch,
            constant,
            geometry,
            steps,
            soft_label,
        )

    def then(self, *steps: Callable[[Array], Array], soft_label: str | None = None) -> PixelStats:
        """The same sums after further steps, such as the sum over the batch."""
        return PixelStats(
            self._fetch, self._constant, self.geometry, self._steps + steps, soft_label or self.soft_label
        )

    def _get(self, row: Row) -> Array:
        x = self._fetch(row)
        for step in self._steps:
            x = step(x)
        return x

    def __getattr__(self, name: str) -> Array:
        if name not in op.MOMENTS:
            raise AttributeError(f"there is no sum {name!r}; there are tp, fp, fn, tn, {', '.join(op.MOMENTS)}")
        return self._get(name)

    @property
    def tp(self) -> Array:
        if self.soft_label == "l1":
            return (self.pred + self.true - self.l1) * 0.5
        return self._get("tp")

    @property
    def fp(self) -> Array:
        return self.pred - self.tp

    @property
    def fn(self) -> Array:
        return self.true - self.tp

    @property
    def tn(self) -> Array:
        return self.n - self.pred - self.true + self.tp

    @property
    def multiclass(self) -> bool:
        """The classes of a pixel exclude each other."""
        return self.geometry.exclusive

    def term(self, kind: str, a: float = 0.0, b: float = 0.0, mapped: bool = False) -> tuple[Array, Array]:
        """(sum u y f(p), sum u (1 - y) f(1 - p)); under softmax the second of a logarithmic term is 0.

        ``mapped``: each pixel times the distance map.
        """
        term = Term(kind, float(a), float(b), mapped)
        second = 0.0 if self.multiclass and not kind.startswith("dsc") else self._get((term, 1))
        return self._get((term, 0)), second

    def focal(self, gamma: float = 0.0, mapped: bool = False) -> tuple[Array, Array]:
        """(sum u y (1-p)^gamma (-log p), sum u (1-y) p^gamma (-log(1-p))); gamma = 0 is cross-entropy."""
        return self.term("focal", gamma, mapped=mapped)

    def power(self, exponent: float) -> tuple[Array, Array]:
        """Sums of the pixel's cross-entropy raised to ``exponent``, split by y and 1 - y."""
        return self.term("power", exponent)

    @property
    def pixels(self) -> Array:
        """Pixels of one sample, ignored ones included."""
        return self._constant("numel", None)

    @property
    def samples(self) -> Array:
        return self._constant("size_n", None)

    @property
    def class_index(self) -> Array:
        """``(1, C)``: 0, 1, ..."""
        return self._constant("class_index", None)

    def vector(self, values: Sequence[float]) -> Array:
        """``(1, C)`` constants, one per class."""
        return self._constant("vector", one_per_class(values, self.geometry.shape[1]))

    def parameter(self, x: Tensor) -> Array:
        """A learnable scalar."""
        return self._constant("parameter", x)


def one_per_class(values: Sequence[float], classes: int) -> tuple[float, ...]:
    """Class weights, as many as there are classes.

    Raises:
        ValueError: another number of them.
    """
    if len(values) != classes:
        raise ValueError(
            f"class_weight must have one weight for each of the {classes} classes; got {len(values)}. "
            f"Try: class_weight of length C, whatever include_background says"
        )
    return tuple(float(v) for v in values)


def tensor_stats(sums: Tensor, plan: Plan, g: Geometry) -> PixelStats:
    def constant(kind: str, value: Any) -> Array:
        if kind == "numel":
            return g.pixels
        if kind == "size_n":
            return g.shape[0]
        if kind == "class_index":
            return torch.arange(g.shape[1], device=sums.device)[None].to(sums.dtype)
        if kind == "vector":
            return torch.tensor([value], dtype=sums.dtype, device=sums.device)
        return value.to(sums.dtype)

    return PixelStats(lambda row: sums[plan.row(row)], constant, g)


Loss = Callable[[PixelStats], tuple[Array, list[Array]]]  # the value, and the terms it is the sum of


class Formula:
    """A loss and its list of instructions, if it has one."""

    def __init__(self, loss: Loss, g: Geometry) -> None:
        self.loss = loss
        self.why_not: str | None = None
        tape = Tape(g.shape[1])
        wanted: list[Row] = []

        def fetch(row: Row) -> Symbol:
            wanted.append(row)
            return tape.emit("row", row, n=True, c=1)

        def constant(kind: str, value: Any) -> Symbol:
            if kind == "parameter":
                return tape.parameter(value)
            return tape.emit(kind, value, c=1 if kind in ("class_index", "vector") else 0)

        try:
            value, terms = loss(PixelStats(fetch, constant, g))
            results = [tape.lift(x) for x in (value, *terms)]
        except Untraceable as reason:
            self.why_not = str(reason)
            _find_rows(loss, g, wanted)
            results = []
        self.plan = Plan(wanted)
        self.parameters = tape.parameters
        self.outputs = [x.index for x in results]
        self.length = len(tape.code)
        self._code = tape.code
        self.constants: dict[Any, Tensor] = {}  # coefficients that do not depend on the target, by kind of call
        if results:
            self._value = (results[0].n, results[0].c)

    @property
    def traced(self) -> bool:
        return self.why_not is None

    def value_shape(self, g: Geometry) -> tuple[int, ...]:
        n, c = self._value
        return ((g.shape[0],) if n else ()) + ((g.shape[1] - (c == 2),) if c else ())

    @cached_property
    def instructions(self) -> dict[str, list[Any]]:
        """Instructions, constants and outputs as the bindings take them."""
        code: list[int] = []
        constants: list[float] = []
        for name, a, b, d, n, c in self._code:
            if name == "row":
                a = self.plan.row(a)
            elif name in ("scalar", "vector"):
                values = a if name == "vector" else (a,)
                a = len(constants)
                constants.extend(values)
            code += [NUMBER[name], a or 0, b or 0, d or 0, int(n) + 2 * c]
        return {"code": code, "constants": constants, "outputs": self.outputs}

    @cached_property
    def linear(self) -> bool:
        """The loss is linear in the sums of the prediction, and what multiplies them depends on the target alone."""
        degree: list[float] = []
        for name, a, b, d, _, _ in self._code:
            if name == "row":
                degree.append(0 if a in COUNTS else 1)
                continue
            of = [degree[i] for i in (a, b, d) if i is not None] if name in BINARY + UNARY + OPS[32:] else []
            if name in ("add", "sub", "neg", "sum_n", "sum_c", "tail", "head"):
                degree.append(max(of))
            elif name == "mul":
                degree.append(sum(of))
            elif name == "div":
                degree.append(of[0] if of[1] == 0 else 9)
            elif name == "where":
                degree.append(max(of[1:]) if of[0] == 0 else 9)
            else:
                degree.append(9 if any(of) else 0)
        return bool(self.outputs) and degree[self.outputs[0]] == 1 and not self.parameters

    @cached_property
    def counts_needed(self) -> bool:
        """More than the number of valid pixels must be known about the target before the pass."""
        return any(name in COUNTS and name != "count" for name in self.plan.moments)


def _find_rows(loss: Loss, g: Geometry, wanted: list[Row]) -> None:
    """The sums that an untraceable formula asks for, found by running it on ones."""

    def fetch(row: Row) -> Tensor:
        wanted.append(row)
        return torch.ones(g.shape[:2], dtype=torch.float64)

    stats = tensor_stats(torch.ones(1, *g.shape[:2], dtype=torch.float64), Plan(()), g)
    stats._fetch = fetch
    loss(stats)


# ------------------------------------------------------------------------------------------- evaluation


def never_ignored(x: Tensors, g: Geometry) -> bool:
    """No pixel can carry ignore_index, whatever the target holds."""
    dtype = x.target.dtype
    return x.mask is None and not dtype.is_floating_point and not op.holds(dtype, g.ignore_index)


class Call:
    """What a loss knows about a kind of call: made once, used for every batch of the same shape, strides and dtypes."""

    def __init__(self, x: Tensors, g: Geometry, f: Formula, measurer: Any = None) -> None:
        self.geometry, self.formula = g, f
        self.measurer = measurer  # of the distance map, if the formula needs one
        self.native: Any = None  # what the backend keeps
        self.backend = _native_backend(x, g, f)
        if self.backend is not None and not self.backend.fits(self, x):
            self.backend = None
        self.dtype = torch.float64 if x.input.dtype == torch.float64 else torch.float32
        if self.backend is not None:
            self.value_shape = f.value_shape(g)
            # What multiplies the terms of a linear formula follows from the target: the same pass can write the
            # gradient.
            self.linear = f.linear and self.backend.AHEAD
            self.count_first = f.counts_needed or x.mask is not None or (g.shape[1] > 1 and not never_ignored(x, g))


def hold(parameters: Sequence[Tensor]) -> Tensor | None:
    """Learnable scalars as a backend reads them."""
    return torch.stack(list(parameters)).to(torch.float64) if parameters else None


def native_forward(
    call: Call, x: Tensors, parameters: Sequence[Tensor], terms: Tensor | None, ahead: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Value, sums, the parameters as the backend holds them and, where it is written ahead, the gradient."""
    held = hold(parameters)
    value, invalid, sums, grad = call.backend.forward(call, x, held, terms, ahead)
    if invalid:
        op.raise_invalid(x, call.geometry)
    return value, sums, held, grad


def native_backward(
    call: Call,
    x: Tensors,
    parameters: Sequence[Tensor],
    held: Tensor | None,
    sums: Tensor,
    grad: Tensor,
    ahead: Tensor | None,
    wanted: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """The gradients of the input, where wanted, and of the parameters."""
    first, many = call.backend.backward(call, x, held, sums, grad, ahead, wanted)
    rest = () if many is None else zip(many.unbind(), parameters, strict=True)
    return first, [g.to(p.dtype) for g, p in rest]


class _Evaluate(torch.autograd.Function):
    """The whole loss as one node: pass and formula forward, formula and pass backward."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, x: Tensors, call: Call, terms: Tensor | None, ahead: bool, *parameters: Tensor
    ) -> Tensor:
        value, sums, held, grad = native_forward(call, x, parameters, terms, ahead)
        ctx.call, ctx.ahead = call, grad
        ctx.save_for_backward(input, *x[1:], sums, held, *parameters)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        call = ctx.call
        input, target, weight, mask, distance, sums, held, *parameters = ctx.saved_tensors
        x = Tensors(input, target, weight, mask, distance)
        if torch.is_grad_enabled() and (x.input.requires_grad or grads[0].requires_grad):
            needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[5:])
            first, *rest = _by_reference(x, call.geometry, call.formula, grads[0], parameters, needs)
            return first, None, None, None, None, *rest
        ahead, ctx.ahead = ctx.ahead, None
        first, many = native_backward(call, x, parameters, held, sums, grads[0], ahead, ctx.needs_input_grad[0])
        return first, None, None, None, None, *many


def _by_reference(
    x: Tensors, g: Geometry, f: Formula, grad: Tensor, parameters: list[Tensor], needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """The gradients as functions of the input, for ``create_graph=True``."""
    value, _ = _by_torch(x, g, f, differentiable=True)
    wanted = [t for t, need in zip((x.input, *parameters), needs, strict=True) if need]
    found = iter(torch.autograd.grad(value, wanted, grad.to(value.dtype), create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needs]


def _by_torch(x: Tensors, g: Geometry, f: Formula, differentiable: bool = False) -> tuple[Tensor, list[Tensor]]:
    """The same loss with its formula on tensors: the general path and the definition of the native one."""
    if differentiable:
        from ..backends.reference import pixel_stats as reference

        rows, _ = reference.forward(x, g, f.plan)
    else:
        rows = op.sums(x, g, f.plan)
    value, terms = f.loss(tensor_stats(rows, f.plan, g))
    dtype = torch.float64 if x.input.dtype == torch.float64 else torch.float32
    shape = (
        tuple(s for s, keep in zip(value.shape, f._value, strict=False) if keep)
        if f.traced and value.ndim == 2
        else value.shape
    )
    return value.reshape(shape).to(dtype), [torch.as_tensor(t).detach().sum() for t in terms]


def evaluate(x: Tensors, call: Call, with_terms: bool = False) -> tuple[Tensor, Sequence[Tensor]]:
    """The value of a loss, in its own shape, and its detached terms."""
    f = call.formula
    if call.backend is None:
        return _by_torch(x, call.geometry, f, differentiable=torch.onnx.is_in_onnx_export())
    terms = torch.empty(len(f.outputs) - 1, dtype=torch.float64, device=x.input.device) if with_terms else None
    ahead = call.linear and x.input.requires_grad and torch.is_grad_enabled()
    value = _Evaluate.apply(x.input, x, call, terms, ahead, *f.parameters)
    return value, () if terms is None else tuple(terms.to(value.dtype))


def _native_backend(x: Tensors, g: Geometry, f: Formula) -> Any:
    """The backend that evaluates the loss in one call, if there is one."""
    if (
        not f.traced
        or forced() == "reference"
        or op.backend(x.input, g, f.plan).__name__.endswith("reference.pixel_stats")
    ):
        return None
    return pick("formula", x.input)


def coefficients(x: Tensors, g: Geometry, f: Formula) -> Tensor:
    """d(value) / d(sums) of a linear formula, ``(K, N, C)``, from the counts of the target alone."""
    counts = f.plan.counts
    key = (g.shape, x.input.device)
    if key in f.constants:
        return f.constants[key]
    known = torch.zeros((f.plan.rows, *g.shape[:2]), dtype=torch.float64, device=x.input.device)
    with torch.no_grad():
        if counts.rows:
            known[: counts.rows] = op.forward(x, g, counts)
    with torch.enable_grad():
        known.requires_grad_()
        value, _ = f.loss(tensor_stats(known, f.plan, g))
        (grad,) = torch.autograd.grad(value.sum(), known)
    if not counts.rows:  # whatever the target is
        if len(f.constants) >= 16:
            f.constants.clear()
        f.constants[key] = grad
    return grad
