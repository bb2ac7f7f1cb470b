"""What every module here is made of: a loss as a formula on sums, with a peer's way of reading its arguments.

A peer's loss says how logits and target are read (:class:`Reading`) and which arithmetic follows (:class:`Term`).
:func:`total` adds terms up; terms that read the same tensors alike share one pass over memory. Where the pass does not
apply (a target that needs a gradient, values that a loss of this library refuses, a functorch transform, a compiler at
work) the same formula runs on sums made by torch: slower, never different.
"""

from __future__ import annotations

import contextvars
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._traced import Scriptable, traceable, tracing
from ..losses._base import Loss, loss_map
from ..ops.formula import Array, PixelStats, mean, tensor_stats
from ..ops.pixel_stats import FLOATING, NEVER, Geometry, Mode, Plan, Row


@dataclass(frozen=True)
class Reading:
    """How logits and target are read."""

    mode: Mode
    from_logits: bool = True
    one_vs_rest: bool = False  # class numbers, each class a problem of its own
    ignore_index: int = NEVER


class Term:
    """A function of the sums with its settings; equal ones are traced once."""

    __slots__ = ("function", "hard_alone", "settings")

    def __init__(self, function: Callable[..., Array], hard_alone: bool = False, **settings: Any) -> None:
        self.function, self.hard_alone, self.settings = function, hard_alone, tuple(settings.items())

    def __call__(self, s: PixelStats) -> Array:
        return self.function(s, **dict(self.settings))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Term) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.function, self.hard_alone, self.settings


class SoftTarget(Exception):
    """A target between 0 and 1 met a formula that holds at 0 and 1."""


class Fused(Loss):
    """Terms of one reading as a loss of this library: one pass."""

    def __init__(self, reading: Reading, terms: tuple[tuple[float, Term], ...]) -> None:
        super().__init__(
            mode=reading.mode, from_logits=reading.from_logits, ignore_index=reading.ignore_index, reduction="sum"
        )
        self.reading, self.weighted_terms = reading, terms

    @property
    def one_vs_rest(self) -> bool:
        return bool(self.reading.one_vs_rest)

    def parts(self, s: PixelStats) -> tuple[Array, list[Array]]:
        return add_up(self.weighted_terms, s), [softness(s)] if self.hard_alone and not s.geometry.index_target else []

    @property
    def hard_alone(self) -> bool:
        """Its formula does not hold for targets between 0 and 1."""
        return any(term.hard_alone for _, term in self.weighted_terms)

    def sum(self, call: Call) -> Tensor:
        """
        Raises:
            SoftTarget: the formula is for hard targets alone.
            ValueError: a target value that this library refuses.
        """
        x, known = self.prepare(call.input, call.target, None, call.mask)
        check = self.hard_alone and not known.geometry.index_target and call.target.dtype.is_floating_point
        found, terms = self.evaluate(x, known, check)
        if check and float(terms[0]) != 0:
            raise SoftTarget
        return found

    def map(self, call: Call) -> Tensor:
        """The loss of every pixel; raises as :meth:`sum` does."""
        y = call.target
        dense = y.shape == call.input.shape and y.dtype.is_floating_point
        if self.hard_alone and dense and bool(((y > 0) & (y < 1)).any()):
            raise SoftTarget
        return loss_map(*self.prepare(call.input, call.target, None, call.mask))


@lru_cache(maxsize=512)
def fused(reading: Reading, terms: tuple[tuple[float, Term], ...]) -> Fused:
    return Fused(reading, terms)


@dataclass
class Call:
    """Tensors and how they are read."""

    input: Tensor
    target: Tensor
    reading: Reading
    mask: Tensor | None = None
    absolute: bool = False  # the size of a prediction is the sum of |p|: for the l1 overlap of values below 0

    def plain(self) -> Call:
        """Without subclasses, and with floating-point logits."""
        return Call(floating(bare(self.input)), bare(self.target), self.reading, bare(self.mask), self.absolute)

    def same(self, other: Call) -> bool:
        mine, theirs = (self.input, self.target, self.mask), (other.input, other.target, other.mask)
        alike = self.reading == other.reading and self.absolute == other.absolute
        return alike and all(a is b for a, b in zip(mine, theirs, strict=True))


def bare(x: Any) -> Any:
    """A plain tensor from a subclass, such as MONAI's MetaTensor."""
    if x is None or type(x) is Tensor or type(x) is torch.nn.Parameter or not isinstance(x, Tensor):
        return x
    return x.as_subclass(Tensor)


def floating(x: Tensor) -> Tensor:
    return x if x.dtype in FLOATING else x.float()


def total(*parts: tuple[float, Call, Term]) -> Tensor:
    """The weighted sum of the terms, with one pass for all that read the same tensors alike."""
    groups: list[tuple[Call, list[tuple[float, Term]]]] = []
    for factor, call, term in parts:
        for known, terms in groups:
            if known.same(call):
                terms.append((float(factor), term))
                break
        else:
            groups.append((call, [(float(factor), term)]))
    value: Any = None
    for call, terms in groups:
        x = _run(call.plain(), tuple(terms))
        value = x if value is None else value + x
    return value


def value(call: Call, function: Callable[..., Array], **settings: Any) -> Tensor:
    """One term alone."""
    return total((1.0, call, Term(function, **settings)))


def pixel_map(call: Call, term: Term) -> Tensor:
    """The loss of every pixel, for a formula that is a plain sum: ``(N, *spatial)`` of a softmax, else shaped like the
    input."""
    call = call.plain()
    kernel = fused(call.reading, ((1.0, term),))
    found = kernel.map(call)
    record(kernel, call)
    return found


def _run(call: Call, terms: tuple[tuple[float, Term], ...]) -> Tensor:
    reason = "values below 0" if call.absolute else by_torch_because(call.input, call.target)
    if reason is None:
        kernel = fused(call.reading, terms)
        try:
            found = kernel.sum(call)
        except ValueError as error:
            return _by_torch(call, terms, error)
        record(kernel, call)
        return found
    record(reason, call)
    return _by_torch(call, terms, None)


def add_up(terms: tuple[tuple[float, Term], ...], s: PixelStats) -> Array:
    result: Array = None
    for factor, term in terms:
        x = term(s) if factor == 1 else factor * term(s)
        result = x if result is None else result + x
    return result


def by_torch_because(input: Tensor, target: Tensor) -> str | None:
    """Why a pass would not do, if so."""
    if torch.compiler.is_compiling() or tracing():
        return "the call is being compiled"
    if torch._C._are_functorch_transforms_active():
        return "a functorch transform is active"
    return "the target carries a gradient" if target.requires_grad else None


# ------------------------------------------------------------------------------------------- sums by torch


def _by_torch(call: Call, terms: tuple[tuple[float, Term], ...], error: ValueError | None) -> Tensor:
    sums = Sums(call, error)
    may_be_soft = call.target.shape == call.input.shape and (error or call.target.dtype.is_floating_point)
    if may_be_soft and any(term.hard_alone for _, term in terms):
        raise SoftTarget
    result = add_up(terms, sums.stats)
    if error is not None:
        record(str(error), call)
    return result.to(torch.float64 if call.input.dtype == torch.float64 else torch.float32)


class Sums:
    """The sums of a pass made by torch operations, each when it is asked for.

    Raises:
        ValueError: ``error``, when a class number has no class.
    """

    def __init__(self, call: Call, error: ValueError | None = None) -> None:
        r, z = call.reading, call.input
        z = z if z.dtype == torch.float64 else z.float()
        shape = tuple(z.shape)
        exclusive = r.mode == "multiclass" and not r.one_vs_rest
        self.activation = "identity" if not r.from_logits else "softmax" if exclusive else "sigmoid"
        index = r.mode == "multiclass" and call.target.shape != z.shape
        y = call.target
        y = y.unsqueeze(1) if y.ndim < z.ndim else y
        m = None if r.ignore_index == NEVER else y != r.ignore_index
        if call.mask is not None:
            mask = (call.mask if call.mask.ndim == z.ndim else call.mask.unsqueeze(1)) != 0
            m = mask if m is None else m & mask
        if index:
            labels = y.long() if m is None else torch.where(m, y.long(), 0)
            y = one_hot(labels.squeeze(1), shape[1], error)
        self.z, self.m, self.absolute = z, m, call.absolute
        self.y = (y if m is None else torch.where(m, y, 0)).to(z.dtype)
        geometry = Geometry(shape, r.mode, self.activation, exclusive, index, r.ignore_index, shape)
        empty = torch.ones((1, *shape[:2]), dtype=torch.float64, device=z.device)
        self.stats = tensor_stats(empty, Plan(()), geometry)
        self.stats._fetch = self.row
        self.classes = shape[1]

    @property
    def p(self) -> Tensor:
        z = self.z if self.m is None else torch.where(self.m, self.z, 0)
        p = z if self.activation == "identity" else z.softmax(1) if self.activation == "softmax" else z.sigmoid()
        return p if self.m is None else torch.where(self.m, p, 0)

    def logs(self) -> tuple[Tensor, Tensor]:
        """Negative logarithms of p and of 1 - p."""
        z = self.z if self.m is None else torch.where(self.m, self.z, 0)
        if self.activation == "identity":
            return -z.clamp(min=1e-7).log(), -(1 - z).clamp(min=1e-7).log()
        if self.activation == "sigmoid":
            return -F.logsigmoid(z), -F.logsigmoid(-z)
        one = -z.log_softmax(1)
        return one, -torch.log1p(-torch.exp(-one))

    def row(self, row: Row) -> Tensor:
        y, m = self.y, 1 if self.m is None else self.m.to(self.z.dtype)
        if isinstance(row, str):
            of = {
                "count": lambda: m * torch.ones_like(self.z),
                "true_count": lambda: y,
                "n": lambda: m * torch.ones_like(self.z),
                "true": lambda: y,
                "true2": lambda: y * y,
                "pred": lambda: self.p.abs() if self.absolute else self.p,
                "pred2": lambda: self.p**2,
                "tp": lambda: self.p * y,
                "l1": lambda: (self.p - y).abs(),
            }
            x: Tensor = of[row]()
        else:
            term, part = row
            one, zero = self.logs()
            log, other = (one, zero) if part == 0 else (zero, one)
            fade = 1.0 if term.a == 0 else torch.exp(-term.a * other)
            share = (y if part == 0 else 1 - y) if term.kind == "focal" else torch.ones_like(y)
            x = m * share * fade * log
        return x.flatten(2).sum(2, dtype=torch.float64) if x.ndim > 2 else x.double()


def one_hot(labels: Tensor, classes: int, error: ValueError | None = None) -> Tensor:
    """``(N, *spatial)`` class numbers as ``(N, C, *spatial)``, bool."""
    numbers = torch.arange(classes, device=labels.device).reshape(1, -1, *[1] * (labels.ndim - 1))
    hot = labels.unsqueeze(1) == numbers
    if by_torch_because(labels, labels) is None and not bool(hot.any(1).all()):
        raise error or ValueError(f"target must hold class numbers 0 to {classes - 1}. Try: target.clamp(0)")
    return hot


# ------------------------------------------------------------------------------------------- words for formulas


def tail(x: Array) -> Array:
    return x[:, 1:]


def over_batch(x: Array) -> Array:
    return x.sum(0, keepdim=True)


def everything(x: Array) -> Array:
    return x.sum()


def groups(s: PixelStats, drop: bool, batch: bool | str, l1: bool = False) -> PixelStats:
    """The sums of every (sample, class): without class 0, over the batch (or over "all"), with the l1 overlap."""
    s = s.then(soft_label="l1") if l1 else s
    s = s.then(tail) if drop else s
    return s.then(everything if batch == "all" else over_batch) if batch else s


def reduced(x: Array, reduction: str) -> Array:
    return x if reduction == "none" else x.sum() if reduction == "sum" else mean(x)


def per_class(s: PixelStats, values: Sequence[float] | float | None, drop: bool = False) -> Array:
    """Numbers for the classes that are left; 1.0 without any."""
    if values is None:
        return 1.0
    if not isinstance(values, tuple):
        return values
    return tail(s.vector((0.0, *values))) if drop else s.vector(values)


def softness(s: PixelStats) -> Array:
    """0 exactly where every y is 0 or 1."""
    return (s.true - s.true2).sum()


def cross_entropy(
    s: PixelStats,
    weight: tuple[float, ...] | None = None,
    smoothing: float = 0.0,
    reduction: str = "mean",
    dense: bool = False,
) -> Array:
    """As torch.nn.CrossEntropyLoss: the mean over class numbers divides by their weights, that over shares does not."""
    w = per_class(s, weight)
    entropy = (w * s.term("focal", 0.0)[0]).sum()
    if smoothing:
        every = (w * s.term("focal_all", 0.0)[0]).sum()
        entropy = (1 - smoothing) * entropy + smoothing / s.geometry.shape[1] * every
    if reduction != "mean":  # a sum, or the sum of a map
        return entropy
    if dense:
        return entropy / (s.pixels * s.samples)
    return entropy / (mean_count(s) if weight is None else (w * s.true).sum())


def mean_count(s: PixelStats) -> Array:
    """The number of valid pixels of the batch."""
    return s.count[:, :1].sum()


def binary_cross_entropy(s: PixelStats, pos_weight: Any = None, reduction: str = "mean") -> Array:
    """As torch.nn.BCEWithLogitsLoss."""
    one, zero = s.term("focal", 0.0)
    entropy = (per_class(s, pos_weight) * one + zero).sum()
    if reduction != "mean":  # a sum, or the sum of a map
        return entropy
    return entropy / (s.pixels * s.samples * s.geometry.shape[1])


# ------------------------------------------------------------------------------------------- settings


_NUMBERS: dict[int, tuple[Any, int, Any]] = {}  # by id: the tensor, its version, its numbers


def numbers(x: Any) -> Any:
    """A tensor of weights as a tuple of floats (a float without axes), read again only when it changes."""
    if x is None or isinstance(x, int | float):
        return x
    if not isinstance(x, Tensor):
        return tuple(float(v) for v in x)
    version = -1 if x.is_inference() else x._version
    known = _NUMBERS.get(id(x))
    if known is not None and known[0]() is x and known[1] == version >= 0:
        return known[2]
    listed = x.detach().double().cpu()
    found = float(listed) if x.ndim == 0 else tuple(listed.flatten().tolist())
    if len(_NUMBERS) >= 256:
        _NUMBERS.clear()
    _NUMBERS[id(x)] = (weakref.ref(x), version, found)
    return found


def warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)


# ------------------------------------------------------------------------------------------- what ran

_record: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("segfuse_compat_record", default=None)


def record(what: Loss | str, call: Call | None = None) -> None:
    """Notes which path a call took, if somebody asks."""
    if torch.compiler.is_compiling():
        return
    notes = _record.get()
    if notes is None:
        return
    if isinstance(what, str):
        notes.append(f"torch operations: {what}")
        return
    assert call is not None
    from ..explain import explain

    notes.append(explain(what, call.input, call.target))


@contextmanager
def recorded() -> Iterator[list[str]]:
    token = _record.set([])
    try:
        notes = _record.get()
        assert notes is not None
        yield notes
    finally:
        _record.reset(token)


class Explained(Scriptable):
    """Lets :func:`segfuse.explain` say what a call of a peer's class computes, and torch.jit take it as an operator."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "forward" in vars(cls):
            cls.forward = traceable(vars(cls)["forward"])  # type: ignore[attr-defined]

    def explanation(self, *args: Any, **kwargs: Any) -> str:
        with recorded() as notes, torch.no_grad():
            self(*args, **kwargs)  # type: ignore[operator]
        return "\n".join(notes) or "torch operations"
