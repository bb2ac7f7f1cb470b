"""formula: the arithmetic on the sums of a pass, in one native call.

A loss is written once, as Python on the sums of :class:`PixelStats`. With tensors in it autograd differentiates it;
that is the definition. With :class:`Symbol` in it the same code writes down its operations, and the list is evaluated
natively, derivative included: on (N, C)-sized tensors torch operations cost more than the pass over a small batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

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
COMPARISONS = BINARY[7:]


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
            symbols = [o for o in operands if isinstance(o, Symbol)]
            if [s.truth for s in symbols] != [name == "where" and i == 0 for i in range(len(symbols))]:
                raise Untraceable("a formula computes with a comparison, or chooses by something else")
            fixed = a in COUNTS if name == "row" else name != "parameter" and all(s.fixed for s in symbols)
            self.code.append(line)
            self._known[line] = Symbol(
                self, len(self.code) - 1, n, c, fixed=fixed or name == "detach", truth=name in COMPARISONS
            )
        return self._known[line]

    def lift(self, x: Any) -> Symbol:
        if isinstance(x, Symbol):
            return x
        if isinstance(x, Real):
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


def _exactly(method: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """The method for the arguments that it names; others, which tensors may take, are not to be guessed."""
    signature = inspect.signature(method)

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise Untraceable(
                f"a formula calls {name or method.__name__} in a way that is not traced: {error}"
            ) from None
        return method(*args, **kwargs)

    return call


def _axes(dim: Any) -> set[int]:
    """The axes of a 2-d tensor that ``dim`` names."""
    dims = (0, 1) if dim is None else tuple(dim) if isinstance(dim, tuple | list) else (dim,)
    axes = {d % 2 for d in dims if type(d) is int and -2 <= d < 2}
    if not dims or len(axes) != len(dims):
        raise Untraceable(f"a formula names the axes {dim!r}")
    return axes


class Symbol:
    """One array of a formula: N or 1 rows; 1, C or C - 1 columns (``c`` = 0, 1, 2).

    It does what a 2-d tensor does or raises :class:`Untraceable`.
    """

    if TYPE_CHECKING:  # these and more are defined below

        def __add__(self, other: Any) -> Symbol: ...
        def __sub__(self, other: Any) -> Symbol: ...
        def __mul__(self, other: Any) -> Symbol: ...
        def __rmul__(self, other: Any) -> Symbol: ...
        def __truediv__(self, other: Any) -> Symbol: ...

    __array_priority__ = 1000  # as of a tensor: a NumPy number on the left leaves the operation to this class

    def __init__(self, tape: Tape, index: int, n: bool, c: int, fixed: bool, truth: bool) -> None:
        self.tape, self.index, self.n, self.c = tape, index, n, c
        self.fixed, self.truth = fixed, truth  # it has no gradient; it is a comparison

    def __bool__(self) -> bool:
        raise Untraceable("a formula branches on the value of a sum; use torch.where")

    def __getattr__(self, name: str) -> Any:
        raise Untraceable(f"a formula uses .{name} of a sum, which is not traced")

    def __getitem__(self, key: Any) -> Symbol:
        if self.c == 1 and key == (slice(None), slice(1, None)):
            return self.tape.emit("tail", self, n=self.n, c=2)
        if self.c == 1 and key == (slice(None), slice(None, 1)):
            return self.tape.emit("head", self, n=self.n, c=0)
        raise Untraceable("a formula indexes its sums other than by [:, 1:] or [:, :1]")

    @_exactly
    def sum(self, dim: Any = None, keepdim: bool = False) -> Symbol:
        axes = _axes(dim)
        if len(axes) == 1 and keepdim is not True:
            raise Untraceable("sum over one axis needs keepdim=True in a formula")
        x = self.tape.emit("sum_n", self, c=self.c) if 0 in axes and self.n else self
        return self.tape.emit("sum_c", x, n=x.n) if 1 in axes and x.c else x

    @_exactly
    def mean(self, dim: Any = None, keepdim: bool = False) -> Symbol:
        x: Symbol = self.sum(dim, keepdim)
        for axis in _axes(dim):
            x = x / self.size(axis)
        return x

    @_exactly
    def size(self, dim: int) -> Symbol | float:
        if _axes(dim) == {0}:
            return self.tape.emit("size_n") if self.n else 1.0
        if self.c == 0:
            return 1.0
        columns = self.tape.emit("size_c")
        return columns if self.c == 1 else columns - 1

    @_exactly
    def amax(self, dim: Any, keepdim: bool = False) -> Symbol:
        if _axes(dim) != {1} or keepdim is not True or not self.fixed:
            raise Untraceable("amax is over classes, with keepdim=True, and of the target alone in a formula")
        if self.c == 2 and self.tape.classes == 1:
            raise Untraceable("a formula takes the largest of no class")
        return self.tape.emit("max_c", self, n=self.n) if self.c else self

    @_exactly
    def detach(self) -> Symbol:
        return self.tape.emit("detach", self, n=self.n, c=self.c)

    @_exactly
    def clamp(self, min: Any = None, max: Any = None) -> Symbol:
        if min is None and max is None:
            raise Untraceable("a formula clamps without a bound")
        x = self if min is None else self.tape.broadcast("maximum", self, min)
        return x if max is None else self.tape.broadcast("minimum", x, max)

    @_exactly
    def square(self) -> Symbol:
        return self * self

    @_exactly
    def where(self, condition: Any, other: Any) -> Symbol:
        return self.tape.broadcast("where", condition, self, other)

    @_exactly
    def pow(self, exponent: Any) -> Symbol:
        return self.tape.broadcast("pow", self, exponent)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.where:
            return _torch_where(*args, **kwargs)
        if "input" in kwargs:
            args = (kwargs.pop("input"), *args)
        name = getattr(function, "__name__", "")
        if function not in _FUNCTIONS or not args or not isinstance(args[0], Symbol):
            raise Untraceable(f"a formula calls torch.{name}, which is not traced")
        return getattr(args[0], name)(*args[1:], **kwargs)


@_exactly
def _torch_where(condition: Any, input: Any, other: Any) -> Symbol:
    if not isinstance(input, Symbol) and not isinstance(other, Symbol):  # a tensor of single precision
        raise Untraceable("a formula lets torch.where choose between numbers; segfuse's where does so")
    return where(condition, input, other)


def _define(name: str, method: str, swapped: bool = False) -> None:
    def unary(self: Symbol) -> Symbol:
        return self.tape.broadcast(name, self)

    def binary(self: Symbol, other: Any) -> Symbol:
        return self.tape.broadcast(name, other, self) if swapped else self.tape.broadcast(name, self, other)

    def extremum(self: Symbol, other: Any) -> Symbol:
        # Of equal operands torch gives each half of the gradient, the instruction gives the first one all.
        one, two = self.tape.broadcast(name, self, other), self.tape.broadcast(name, other, self)
        return (one + two) * 0.5

    call = unary if name in UNARY else extremum if name in ("maximum", "minimum") else binary
    setattr(Symbol, method, _exactly(call, name))


for _name in (*UNARY, *BINARY):
    if _name != "pow":  # has its own
        _define(_name, _name)
for _name in ("add", "sub", "mul", "pow", *COMPARISONS):
    _define(_name, f"__{_name}__")
for _name in ("add", "sub", "mul", "pow"):
    _define(_name, f"__r{_name}__", swapped=True)
_define("div", "__truediv__")
_define("div", "__rtruediv__", swapped=True)
_define("neg", "__neg__")
_define("abs", "__abs__")
_FUNCTIONS = {getattr(torch, name) for name in ("sum", "mean", "amax", "clamp", "square", "pow", *BINARY, *UNARY)}


def _refuse(name: str) -> None:
    def call(self: Symbol, *args: Any, **kwargs: Any) -> Any:
        raise Untraceable(f"a formula uses {name} of a sum, which is not traced")

    setattr(Symbol, name, call)


for _name in set(dir(Tensor)) - set(dir(Symbol)):  # float(x), len(x), x & y, x += y, ...
    if _name.startswith("__") and not _name.startswith("__torch") and callable(getattr(Tensor, _name)):
        _refuse(_name)


# ------------------------------------------------------------------------------------------- words for formulas


def where(condition: Array, a: Array, b: Array) -> Array:
    """``a`` where the condition holds, else ``b``; either may be a number."""
    for x in (condition, a, b):
        if isinstance(x, Symbol):
            return x.tape.broadcast("where", condition, a, b)
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


def tensor_stats(sums: Tensor, plan: Plan, g: Geometry, missing: Callable[[Row], Tensor] | None = None) -> PixelStats:
    """The sums as tensors; ``missing`` makes those that the plan lacks."""

    def fetch(row: Row) -> Tensor:
        try:
            return sums[plan.row(row)]
        except KeyError:
            if missing is None:
                raise
            return missing(row)

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

    return PixelStats(fetch, constant, g)


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

        results: list[Symbol] = []
        try:
            value, terms = loss(PixelStats(fetch, constant, g))
            results = [tape.lift(x) for x in (value, *terms)]
        except Exception as reason:  # whatever it is, tensors tell whether the formula is to blame
            self.why_not = str(reason) or type(reason).__name__
        if not results:
            self._example = _example(loss, g, wanted)
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
        if not self.traced:
            samples, shape = self._example
            return tuple(g.shape[0] if axis == 0 and size == samples else size for axis, size in enumerate(shape))
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


def _example(loss: Loss, g: Geometry, wanted: list[Row]) -> tuple[int, tuple[int, ...]]:
    """What an untraceable formula asks for, and the shape of its value for a number of samples: it is run on ones."""
    samples = g.shape[0] if type(g.shape[0]) is int and g.shape[0] > 1 else 2  # not one: a batch has one row too
    shape = (samples, g.shape[1])

    def fetch(row: Row) -> Tensor:
        wanted.append(row)
        return torch.ones(shape, dtype=torch.float64, device="cpu")

    with _disable_current_modes():  # under torch.compile tensors have no values
        stats = tensor_stats(torch.ones(1, *shape, dtype=torch.float64, device="cpu"), Plan(()), g, fetch)
        value, _ = loss(stats)
        return samples, tuple(torch.as_tensor(value).shape)


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

    def sums(plan: Plan) -> Tensor:
        if differentiable:
            from ..backends.reference import pixel_stats as reference

            return reference.forward(x, g, plan)[0]
        return op.sums(x, g, plan)

    def missing(row: Row) -> Tensor:  # behind a branch that was not taken before
        plan = Plan([row])
        return sums(plan)[plan.row(row)]

    value, terms = f.loss(tensor_stats(sums(f.plan), f.plan, g, missing))
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
