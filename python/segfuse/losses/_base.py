"""What every loss has in common: options, reductions, and how losses add up to one pass.

A loss says how its value follows from the sums of a pass (:class:`~segfuse.ops.formula.PixelStats`); which sums it
needs is found by running it. A sum of losses is one such formula, so it is one pass, whatever the number of terms.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
from abc import ABCMeta
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, Sequence, ValuesView
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict, Unpack

from .._compiled import doors, register
from .._traced import Scriptable
from ..backends import forced
from ..ops import pixel_stats as op
from ..ops.formula import Array, Call, Formula, PixelStats, coefficients, evaluate, mean, ratio, where
from ..ops.pixel_stats import Geometry, Mode, Tensors

Reduction = Literal["mean", "sum", "none"]


class _Common(TypedDict, total=False):
    mode: Mode
    from_logits: bool
    reduction: Reduction
    ignore_index: int


class UnweightedOptions(_Common, total=False):
    """Options of every loss but ``class_weight``: for a loss that writes that one out. Likewise below."""

    include_background: bool | None


class _Weight(TypedDict, total=False):
    class_weight: Sequence[float] | Tensor | None


class UnbackedOptions(_Common, _Weight, total=False):
    """Options of every loss but ``include_background``."""


class _Smooth(TypedDict, total=False):
    smooth: float | tuple[float, float]


class _Region(UnweightedOptions, total=False):
    batch: bool
    empty: Literal["formula", "zero", "skip"]
    soft_label: Literal["product", "l1"]
    average: Literal["macro", "micro"]


class Options(UnweightedOptions, _Weight, total=False):
    """Options of every loss."""


class UnweightedPixelOptions(UnweightedOptions, total=False):
    normalize: Literal["valid", "weight", "numel"] | None
    label_smoothing: float


class PixelOptions(UnweightedPixelOptions, _Weight, total=False):
    """Options of losses that are a mean over pixels."""


class UnweightedRegionOptions(_Region, _Smooth, total=False):
    pass


class UnsmoothedRegionOptions(_Region, _Weight, total=False):
    pass


class RegionOptions(_Region, _Weight, _Smooth, total=False):
    """Options of losses that compare regions."""


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}. Try: {name}={allowed[0]!r}"
        )
    return value


def number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> Any:
    """A finite number, or a sequence of numbers, in [low, high]; those of NumPy as Python has them."""
    several = isinstance(value, list | tuple)
    for v in value if several else (value,):
        if not _is_number(v) or not low <= v <= high or math.isinf(v):
            bound = f">= {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
            raise ValueError(
                f"{name} must be a number {bound}; got {value!r}. Try: {name}={max(low, min(high, 1.0)):g}"
            )
    found = tuple(v if isinstance(v, int) else float(v) for v in (value if several else (value,)))
    return found if several else found[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _factor(value: Any) -> float:
    """Of a loss."""
    if _is_number(value):
        return float(value)
    if isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad:
        return float(value)
    learns = isinstance(value, Tensor) and value.requires_grad
    raise TypeError(
        f"the factor of a loss must be a number; got {'a tensor with a gradient' if learns else type(value).__name__}. "
        f"Try: {'factor * loss(input, target)' if learns else '0.5 * DiceLoss()'}"
    )


def _no_summand(other: Any) -> TypeError:
    return TypeError(
        f"a sum of losses must hold losses of segfuse; got {type(other).__name__}. "
        "Try: loss(input, target) + other(input, target)"
    )


def weights_tuple(name: str, value: Any, words: tuple[str, ...] = ()) -> Any:
    if value is None or (isinstance(value, str) and value in words):
        return value
    if isinstance(value, str):
        known = "".join(f" or be {word!r}" for word in words)
        raise ValueError(f"{name} must hold one number per class{known}; got {value!r}. Try: {name}=[1.0, 2.0, ...]")
    try:
        values = tuple(float(v) for v in (value.tolist() if hasattr(value, "tolist") else value))
    except (TypeError, ValueError):
        values = None
    if not values or any(v < 0 or not math.isfinite(v) for v in values) or not any(values):
        raise ValueError(
            f"{name} must hold numbers >= 0, not all 0, one per class; "
            f"got {value if values is None else values!r}. Try: {name}=[1.0, 2.0, ...]"
        )
    return values


def refuse_map(loss: Loss, distance_map: Any) -> None:
    if distance_map is not None:
        raise TypeError(f"{type(loss).__name__} takes no distance_map. Try: without it")


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.strip("_").removesuffix("Loss")).lower()


@functools.lru_cache(maxsize=64)
def beside(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """The numbers in float64, moved to a device once: each move would wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.float64, device=device)


#: What other libraries call it, and what to write here.
_WORDS = {
    "weight": "class_weight=[...], one number per class",
    "pos_weight": "beta=... of CrossEntropyLoss",
    "size_average": "reduction='mean' or 'sum'",
    "reduce": "reduction='mean' or 'none'",
    "sigmoid": "mode='binary' or 'multilabel', and from_logits=False if the input holds probabilities",
    "softmax": "mode='multiclass', and from_logits=False if the input holds probabilities",
    "other_act": "from_logits=False, with probabilities as input",
    "apply_nonlin": "from_logits=True for logits, from_logits=False for probabilities",
    "to_onehot_y": "without it: class numbers and one-hot targets are both taken",
    "use_softmax": "mode='multiclass'",
    "squared_pred": "DiceLoss(squared=True)",
    "jaccard": "JaccardLoss()",
    "smooth_nr": "smooth=(nr, dr)",
    "smooth_dr": "smooth=(nr, dr)",
    "eps": "smooth=(0.0, eps)",
    "batch_dice": "batch=True",
    "do_bg": "include_background=False",
    "classes": "class_weight=[...], 0 for a class that does not count",
}


_MONAI = ("sigmoid", "softmax", "other_act", "to_onehot_y", "squared_pred", "jaccard", "smooth_nr", "smooth_dr")


class _Made(ABCMeta):
    """Constructs losses: explains a keyword that a loss does not have, and says when a constructor is through.

    Abstract classes may be mixed in.
    """

    _settings: dict[str, str]  # arguments of the constructor and the attributes that hold them: the argument

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        names: list[str] = []
        for owner in cls.__mro__:
            if "__init__" in vars(owner):
                parameters = [*inspect.signature(vars(owner)["__init__"]).parameters.values()][1:]
                names += [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
                if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                    break
        held = {attribute: argument for argument, attribute in namespace.get("held_as", {}).items()}
        cls._settings = {argument: argument for argument in names if argument != "terms"} | held

    if not TYPE_CHECKING:  # the arguments are those of the class

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            try:
                loss = super().__call__(*args, **kwargs)
            except TypeError as error:
                word = re.search(r"unexpected keyword argument '(\w+)'", str(error))
                if word is None or word[1] not in kwargs or word[1] in cls._settings:
                    raise
                name = word[1]
            else:
                loss.__dict__["_made"] = True
                return loss
            near = [f"{argument}=..." for argument in difflib.get_close_matches(name, cls._settings, 1)]
            call = _WORDS.get(name) or "".join(near) or f"help(segfuse.{cls.__name__})"
            more = "; or segfuse.compat.monai, which takes MONAI's arguments" if name in _MONAI else ""
            raise TypeError(f"{cls.__name__} has no argument {name!r}. Try: {call}{more}")


class Loss(Scriptable, nn.Module, metaclass=_Made):
    """A loss of logits ``(N, C, *spatial)`` and a target; see :meth:`forward` for what both may be.

    Args:
        mode: ``"binary"`` and ``"multilabel"`` use a sigmoid per channel, ``"multiclass"`` a softmax over channels;
            ``"auto"`` is binary for one channel, else multiclass.
        from_logits: ``False`` takes probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: target value whose pixels neither count nor get a gradient, even where the logit is NaN.
        class_weight: one weight >= 0 per class, always of length C.
        include_background: ``False`` leaves out class 0 (after the softmax) when there is more than one channel;
            ``None`` does so in multiclass mode, and there alone.
    """

    class_weight_words: tuple[str, ...] = ()  # what class_weight may be besides numbers
    held_as: ClassVar[dict[str, str]] = {}  # attributes that hold an argument of another name

    @property
    def one_vs_rest(self) -> bool:
        """Multiclass by one sigmoid per class."""
        return False

    own_pass = False  # the value is what `compute` makes of the tensors, not a formula on sums

    @property
    def fusable(self) -> bool:
        """Its value is a formula on sums."""
        return not self.own_pass

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "forward" in vars(cls):
            cls.forward = doors(cls.forward)  # type: ignore[method-assign]

    def __init__(
        self,
        *,
        mode: Mode = "auto",
        from_logits: bool = True,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        class_weight: Sequence[float] | Tensor | str | None = None,
        include_background: bool | None = True,
    ) -> None:
        super().__init__()
        self.__dict__["compiled_name"] = register(self)
        self._formulas: dict[Any, Formula] = {}
        self._calls: dict[Any, Call] = {}
        self.mode = one_of("mode", mode, op.MODES)
        self.from_logits = bool(from_logits)
        self.reduction = one_of("reduction", reduction, ("mean", "sum", "none"))
        self.ignore_index = op.check_ignore_index(ignore_index)
        self.class_weight = weights_tuple("class_weight", class_weight, self.class_weight_words)
        self.include_background = include_background if include_background is None else bool(include_background)

    # ---------------------------------------------------------------- to be written by a loss

    def value(self, s: PixelStats) -> Array:
        """The loss, reduced."""
        raise NotImplementedError

    def parts(self, s: PixelStats) -> tuple[Array, list[Array]]:
        """The loss and the terms to report."""
        value = self.value(s)
        return value, []

    def term_names(self) -> list[str]:
        return []

    def compute(self, x: Tensors, g: Geometry, **more: Any) -> Tensor:
        """The value, reduced, of a loss with a pass of its own."""
        raise NotImplementedError

    def unreduced_shape(self, g: Geometry) -> tuple[int, ...]:
        """The shape of the value with ``reduction="none"``."""
        if self.own_pass:
            return g.shape[0], g.shape[1] - int(self.leaves_out_background(g))
        return self.formula_for(g).value_shape(g)

    measures = False  # pixels are weighed by a distance map

    def distances(self, x: Tensors, g: Geometry) -> Tensor:
        """The map of a loss that measures, ``(N, C, *spatial)`` or ``(N, 1, *spatial)``; ``x.distance`` is a given one.

        Runs without gradient.
        """
        raise NotImplementedError

    @property
    def by_pixel(self) -> bool:
        """Its pass gives the loss of every pixel, not sums."""
        return False

    @property
    def measurer(self) -> Loss | None:
        """The loss whose distance map this one needs."""
        return self if self.measures else None

    def explanation(self, input: Tensor, target: Tensor) -> str | None:
        """Which kernels run, in words, where they are not those of a formula on sums."""
        return None

    # ---------------------------------------------------------------- calling

    @doors
    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        weight_map: Tensor | None = None,
        mask: Tensor | None = None,
        distance_map: Any = None,
        return_terms: bool = False,
    ) -> Any:
        """
        Args:
            input: logits (probabilities with ``from_logits=False``) ``(N, C, *spatial)``, any strides; float32,
                float64, float16 or bfloat16. ``mode="binary"`` also takes ``(N, *spatial)``.
            target: multiclass: class numbers ``(N, *spatial)`` or ``(N, 1, *spatial)``, or one-hot or probabilities
                shaped like ``input``; binary and multilabel: 0/1 or soft, shaped like ``input``. Any dtype, read as
                it is.
            weight_map: weight >= 0 of every pixel, ``(N, *spatial)``, ``(N, 1, *spatial)`` or ``(N, C, *spatial)``.
            mask: nonzero where a pixel counts, ``(N, *spatial)`` or ``(N, 1, *spatial)``.
            distance_map: for losses that measure distances, what they would otherwise compute from the target (their
                documentation says what; :mod:`segfuse.transforms` makes it), shaped like ``weight_map``. A compound
                with several such terms takes a dictionary by term.
            return_terms: also return the detached value of every term, by name.
        Returns:
            the loss, float32 (float64 for float64 logits); with ``return_terms`` a pair of it and a dictionary.
        Raises:
            ValueError: shapes, values or options that do not fit together.
            TypeError: a dtype that does not fit.
        """
        if self.own_pass:
            return self.run(input, target, weight_map, mask, distance_map, return_terms)
        value, terms = self.evaluate(*self.prepare(input, target, weight_map, mask, distance_map), return_terms)
        if not return_terms:
            return value
        return value, dict(zip(self.reported(), terms or [value.detach()], strict=True))

    def run(
        self,
        input: Tensor,
        target: Tensor,
        weight_map: Tensor | None = None,
        mask: Tensor | None = None,
        distance_map: Tensor | None = None,
        return_terms: bool = False,
        **more: Any,
    ) -> Any:
        """Checks the arguments and computes the value; ``more`` goes to :meth:`compute`."""
        x, g = self.check(input, target, weight_map, mask, distance_map)
        value = self.compute(x, g, **more).to(torch.float64 if x.input.dtype == torch.float64 else torch.float32)
        return (value, dict(zip(self.reported(), [value.detach()], strict=True))) if return_terms else value

    def check(
        self,
        input: Tensor,
        target: Tensor,
        weight_map: Tensor | None,
        mask: Tensor | None,
        distance_map: Tensor | None = None,
    ) -> tuple[Tensors, Geometry]:
        if self.measurer is None:
            refuse_map(self, distance_map)
        return op.check(
            input,
            target,
            mode=self.mode,
            from_logits=self.from_logits,
            one_vs_rest=self.one_vs_rest,
            ignore_index=self.ignore_index,
            weight_map=weight_map,
            mask=mask,
            distance_map=distance_map,
        )

    def prepare(
        self,
        input: Tensor,
        target: Tensor,
        weight_map: Tensor | None,
        mask: Tensor | None,
        distance_map: Tensor | None = None,
    ) -> tuple[Tensors, Call]:
        """Checks the arguments, once for each kind of plain tensors, and measures what is to be measured."""
        key = None
        if (
            weight_map is None
            and mask is None
            and distance_map is None
            and type(target) is Tensor
            and type(input) in (Tensor, nn.Parameter)
            and not (input.is_neg() or target.is_neg())
        ):
            key = (*_kind(input), *_kind(target), target.requires_grad, forced(), self._state())
            call = self._calls.get(key)
            if call is not None:
                x = Tensors(input, target, None, None)
                return x if call.measurer is None else self._measured(x, call), call
        x, g = self.check(input, target, weight_map, mask, distance_map)
        call = Call(x, g, self.formula_for(g), self.measurer)
        x = self._measured(x, call)
        if key is not None and not op.needs_mask(target, g):
            if len(self._calls) >= 64:
                self._calls.clear()
            self._calls[key] = call
        return x, call

    def _measured(self, x: Tensors, call: Call) -> Tensors:
        if call.measurer is None:
            return x
        with torch.no_grad():
            return x._replace(distance=call.measurer.distances(x, call.geometry))

    def evaluate(self, x: Tensors, call: Call, with_terms: bool = False) -> tuple[Tensor, Sequence[Tensor]]:
        return (loss_map(x, call), []) if self.by_pixel else evaluate(x, call, with_terms)

    def formula_for(self, g: Geometry) -> Formula:
        key = (g.mode, g.activation, g.shape[1], self._state())
        if key not in self._formulas:
            if len(self._formulas) >= 16:
                self._formulas.clear()
            self._formulas[key] = Formula(self.parts, g)
        return self._formulas[key]

    def _state(self) -> Any:
        """Changes when a setting of this loss or of one inside it changes, or a learned number is another tensor."""
        own = self._parameters
        return (self._changes, *map(id, own.values())) if own else self._changes

    def pass_key(self) -> tuple[Any, ...]:
        """Losses with equal keys can share a pass."""
        return self.mode, self.from_logits, self.ignore_index, self.one_vs_rest

    # ---------------------------------------------------------------- settings

    _changes = 0
    _made = False  # the constructor is through

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self)._settings and self._made and name not in self._parameters:
            name, value = self._checked(name, value)
        if isinstance(value, nn.Module) and isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)  # nn.Module would keep it behind the property
        else:
            super().__setattr__(name, value)
        if name != "_changes":
            self.__dict__["_changes"] = self._changes + 1

    def _checked(self, name: str, value: Any) -> tuple[str, Any]:
        """The attribute that holds a setting, and the value as the constructor keeps it, which checks it."""
        argument = type(self)._settings[name]
        attribute = self.held_as.get(argument, argument)
        try:
            return attribute, getattr(self._with({argument: value}), attribute)
        except Exception:
            try:
                self._with({})
            except Exception:  # a constructor that does not take the settings it made
                return name, value
            raise

    def _with(self, changed: dict[str, Any]) -> Loss:
        """Another loss with these settings."""
        holders = {argument: self.held_as.get(argument, argument) for argument in type(self)._settings.values()}
        settings = {argument: getattr(self, holder) for argument, holder in holders.items() if hasattr(self, holder)}
        learned = {name: value.detach() for name, value in settings.items() if isinstance(value, nn.Parameter)}
        return type(self)(**{**settings, **learned, **changed})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_formulas": {}, "_calls": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["compiled_name"] = register(self)

    def reported(self) -> list[str]:
        """The names of the terms that ``return_terms`` gives."""
        return self.term_names() or [snake(type(self).__name__)]

    def value_shape(self, g: Geometry) -> tuple[int, ...]:
        """The shape of the value."""
        return self.unreduced_shape(g) if self.reduction == "none" else ()

    def extra_repr(self) -> str:
        shown = []
        for owner in reversed(type(self).__mro__):
            if not (isinstance(owner, type) and issubclass(owner, Loss)) or "__init__" not in vars(owner):
                continue
            for name, parameter in inspect.signature(owner.__init__).parameters.items():
                if parameter.default is inspect.Parameter.empty or not hasattr(self, name):
                    continue
                value = getattr(self, name)
                if owner is type(self) or value not in (parameter.default, (parameter.default, parameter.default)):
                    text = f"{name}={float(value.detach()):g}" if isinstance(value, Tensor) else f"{name}={value!r}"
                    shown.append((owner is not type(self), text))
        return ", ".join(dict.fromkeys(text for _, text in sorted(shown, key=lambda pair: pair[0])))

    # ---------------------------------------------------------------- sums of losses

    def __add__(self, other: Loss) -> CompoundLoss:
        if not isinstance(other, Loss):
            raise _no_summand(other)
        return CompoundLoss((self, other))

    def __radd__(self, other: Any) -> Loss:
        if _is_number(other) and other == 0:  # sum() begins with it
            return self
        raise _no_summand(other)

    def __mul__(self, factor: float | Tensor) -> CompoundLoss:
        return CompoundLoss(((_factor(factor), self),))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Tensor) -> CompoundLoss:
        return self * (1 / _factor(divisor))

    def __neg__(self) -> CompoundLoss:
        return self * -1.0

    def __sub__(self, other: Loss) -> CompoundLoss:
        if not isinstance(other, Loss):
            raise _no_summand(other)
        return self + -other

    # ---------------------------------------------------------------- shared arithmetic

    def foreground(self, s: PixelStats) -> PixelStats:
        """Without class 0 where that is asked for and there is another."""
        return s.then(_tail) if self.drops_background(s) else s

    def drops_background(self, s: PixelStats) -> bool:
        return self.leaves_out_background(s.geometry)

    def leaves_out_background(self, g: Geometry) -> bool:
        include = not g.exclusive if self.include_background is None else self.include_background
        return not include and g.shape[1] > 1

    def weights(self, s: PixelStats) -> Array | None:
        """Class weights ``(1, C)``."""
        if self.class_weight is None:
            return None
        v = s.vector(self.class_weight)
        return _tail(v) if self.drops_background(s) else v


def _kind(x: Tensor) -> tuple[Any, ...]:
    """Everything about a tensor but its values; a sparse one has no strides."""
    return x.shape, x.stride() if x.layout is torch.strided else None, x.dtype, x.device


def _tail(x: Array) -> Array:
    return x[:, 1:]


def _over_batch(x: Array) -> Array:
    return x.sum(0, keepdim=True)


class PixelLoss(Loss):
    """A sum over pixels, divided by a normaliser.

    Args:
        normalize: what ``reduction="mean"`` divides by: ``"valid"`` the number of valid pixels (elements, for
            independent channels), ``"weight"`` the sum of their weights, ``"numel"`` all of them, ignored ones
            included. Default: ``"valid"``.
        label_smoothing: mixes the target with the uniform distribution, in [0, 1].

    A normaliser of 0 gives loss 0 and gradient 0.
    """

    def __init__(
        self,
        *,
        normalize: Literal["valid", "weight", "numel"] | None = None,
        label_smoothing: float = 0.0,
        class_weight: Sequence[float] | Tensor | str | None = None,
        **common: Unpack[UnweightedOptions],
    ) -> None:
        super().__init__(class_weight=class_weight, **common)
        self.normalize = one_of("normalize", normalize, (None, "valid", "weight", "numel"))
        self.label_smoothing = number("label_smoothing", label_smoothing, 0, 1)

    def pixel(self, s: PixelStats) -> Array:
        """Sum of the loss over the pixels of every (sample, class), with class weights; linear in the pixel terms."""
        raise NotImplementedError

    def value(self, s: PixelStats) -> Array:
        s = self.foreground(s)
        total = self.pixel(s).sum()
        return total if self.reduction == "sum" else ratio(total, self.normaliser(s))

    def normaliser(self, s: PixelStats) -> Array:
        classes = s.geometry.shape[1] - self.drops_background(s)
        if self.normalize == "numel":
            return s.pixels * s.samples * (1 if s.multiclass else classes)
        if self.normalize == "weight":
            v = self.weights(s)
            seen = s.true if s.multiclass else s.n
            return (seen if v is None else v * seen).sum()
        if not s.multiclass:
            return s.count.sum()
        return s.true_count.sum() if self.drops_background(s) else s.count.sum() / classes

    def weights(self, s: PixelStats) -> Array | None:
        if self.class_weight != "balanced":
            return super().weights(s)
        present = _over_batch(s.true_count)
        some = present > 0
        share = ratio(present.sum(), where(some, 1.0, 0.0).sum())
        return where(some, share / where(some, present, 1.0), 0.0)

    def weighted(self, s: PixelStats, x: Array) -> Array:
        v = self.weights(s)
        return x if v is None else v * x

    def entropy(self, s: PixelStats, gamma: float = 0.0, mapped: bool = False) -> tuple[Array, Array]:
        """The two focal sums of smoothed labels; gamma = 0 is cross-entropy."""
        one, zero = s.focal(gamma, mapped)
        e = self.label_smoothing
        if e == 0:
            return one, zero
        every, rest = s.term("focal_all", gamma, mapped=mapped)
        share = e / (s.geometry.shape[1] if s.multiclass else 2)
        return (1 - e) * one + share * every, (1 - e) * zero + share * rest

    @property
    def by_pixel(self) -> bool:
        return self.reduction == "none"

    def unreduced_shape(self, g: Geometry) -> tuple[int, ...]:
        return g.map_shape

    def parts(self, s: PixelStats) -> tuple[Array, list[Array]]:
        if self.reduction != "none":
            return super().parts(s)
        return self.pixel(self.foreground(s)).sum(), []


def loss_map(x: Tensors, call: Call) -> Tensor:
    """The loss of every pixel, for a formula that is a sum over pixels."""
    g, f = call.geometry, call.formula
    return op.loss_map(x, g, f.plan, coefficients(x, g, f))


class StatsLoss(Loss):
    """One loss per (sample, class) from its confusion sums, then a mean.

    Args:
        batch: add the sums over the batch first; one loss per class.
        smooth: added to numerator and denominator; a pair sets them apart.
        empty: what a group without target contributes: ``"formula"`` the formula as it stands, ``"zero"`` 0, ``"skip"``
            nothing (the mean is over the classes present in each sample).
        soft_label: how a soft target meets a prediction: ``"product"`` sum p y, or ``"l1"``, which is smallest at
            p = y.
        average: ``"macro"`` averages the classes' losses, ``"micro"`` adds their sums first.

    A group without valid pixels has loss 0 and gradient 0.
    """

    def __init__(
        self,
        *,
        batch: bool = False,
        smooth: float | tuple[float, float] = 1.0,
        empty: Literal["formula", "zero", "skip"] = "formula",
        soft_label: Literal["product", "l1"] = "product",
        average: Literal["macro", "micro"] = "macro",
        **common: Unpack[Options],
    ) -> None:
        super().__init__(**common)
        self.batch = bool(batch)
        self.smooth = smooth
        self.empty = one_of("empty", empty, ("formula", "zero", "skip"))
        self.soft_label = one_of("soft_label", soft_label, ("product", "l1"))
        self.average = one_of("average", average, ("macro", "micro"))

    @property
    def smooth(self) -> tuple[float, float]:
        """What is added to numerator and denominator."""
        return self._smooth

    @smooth.setter
    def smooth(self, value: float | tuple[float, float]) -> None:
        pair = tuple(number("smooth", value)) if isinstance(value, list | tuple) else (number("smooth", value),) * 2
        if len(pair) != 2:
            raise ValueError(
                f"smooth must be a number or a pair (numerator, denominator); got {value!r}. Try: smooth=(0.0, 1e-5)"
            )
        self._smooth = pair

    def evaluate(self, x: Tensors, call: Call, with_terms: bool = False) -> tuple[Tensor, Sequence[Tensor]]:
        value, terms = super().evaluate(x, call, with_terms)
        # A tensor keeps the axes that were summed over.
        if self.reduction == "none" and not (self.by_pixel or call.formula.traced):
            value = value.squeeze(1) if self.average == "micro" else value
            value = value.squeeze(0) if self.batch else value
        return value, terms

    def unreduced_shape(self, g: Geometry) -> tuple[int, ...]:
        shape = super().unreduced_shape(g)
        if self.formula_for(g).traced:
            return shape
        shape = shape[:1] if self.average == "micro" else shape
        return shape[1:] if self.batch else shape

    def formula(self, s: PixelStats) -> Array:
        """One loss per group from its sums, each ``(N, C)``, or ``(1, C)`` over a batch."""
        raise NotImplementedError

    def outer(self, x: Array) -> Array:
        """Applied after the mean."""
        return x

    def groups(self, s: PixelStats) -> PixelStats:
        """The sums of the groups that get a loss each."""
        v = self.weights(s)
        s = self.foreground(s).then(soft_label=self.soft_label)
        if self.batch:
            s = s.then(_over_batch)
        if self.average == "micro":
            s = s.then(lambda x: (x if v is None else v * x).sum(1, keepdim=True))
        return s

    def value(self, s: PixelStats) -> Array:
        v = self.weights(s) if self.average == "macro" else None
        s = self.groups(s)
        valid = s.n > 0
        if isinstance(valid, Tensor) and torch.is_grad_enabled():  # 0 / 0 has value 0 below, and so its gradient
            s = s.then(lambda x: torch.where(valid, x, x.detach()))
        loss = where(valid, self.formula(s), 0.0)
        if self.empty == "zero":
            loss = where(s.true > 0, loss, 0.0)
        if self.empty == "skip":
            v = where(s.true > 0, 1.0 if v is None else v, 0.0)
        weighted = loss if v is None else v * loss
        if self.reduction == "none":
            return weighted
        if self.reduction == "sum":
            return self.outer(weighted.sum())
        if v is None:
            return self.outer(mean(loss))
        return self.outer(mean(ratio(weighted.sum(1, keepdim=True), v.sum(1, keepdim=True))))


class RegionLoss(StatsLoss):
    """Your own region loss from one line, fused like the rest.

    Args:
        formula: takes :class:`~segfuse.ops.formula.PixelStats` and returns one loss per group. It is run once per mode
            to find the sums it needs and to write down its arithmetic, so numbers it closes over are read once.

    Example:
        ``RegionLoss(lambda s: 1 - (2 * s.tp + 1) / (s.pred + s.true + 1))`` is Dice.
    """

    held_as: ClassVar = {"formula": "function"}

    def __init__(self, formula: Callable[[PixelStats], Array], **common: Unpack[RegionOptions]) -> None:
        if not callable(formula):
            raise TypeError(
                f"formula must be callable; got {type(formula).__name__}. "
                "Try: RegionLoss(lambda s: 1 - s.tp / (s.true + 1))"
            )
        super().__init__(**common)
        self.function = formula

    def formula(self, s: PixelStats) -> Array:
        return self.function(s)

    def extra_repr(self) -> str:
        name = getattr(self.function, "__name__", repr(self.function))
        return ", ".join(filter(None, (f"formula={name}", super().extra_repr())))


class Losses(nn.ModuleDict):
    """The terms of a sum."""

    def __setitem__(self, name: str, loss: nn.Module) -> None:
        if not isinstance(loss, Loss):
            raise TypeError(
                f"a term must be a loss or (weight, loss); got {loss!r}. "
                "Try: CompoundLoss({'dice': (0.5, DiceLoss())})"
            )
        if loss.reduction == "none":
            raise ValueError(
                f"a term of a sum must be a number, but {type(loss).__name__} has reduction='none'. "
                "Try: reduction='mean'"
            )
        super().__setitem__(name, loss)

    if TYPE_CHECKING:  # torch does not say what the modules of a ModuleDict are

        def __getitem__(self, key: str) -> Loss: ...
        def items(self) -> ItemsView[str, Loss]: ...
        def values(self) -> ValuesView[Loss]: ...


class Weights(MutableMapping[str, float]):
    """The factors of the terms of a sum, by name; 1 for a term that was added later."""

    def __init__(self, terms: Losses, owner: str, setting: str) -> None:
        self.terms, self.owner, self.setting = terms, owner, setting  # which they follow from, of a preset
        self.factors: dict[str, float] = {}

    def __getitem__(self, name: str) -> float:
        return {term: self.factors.get(term, 1.0) for term in self.terms}[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if self.setting:
            raise TypeError(
                f"the factors of {self.owner} follow from its settings. Try: loss.{self.setting} = ..., "
                "or a sum of losses, whose factors may be set"
            )
        if name not in self.terms:
            raise ValueError(
                f"there is no term {name!r}; there are {', '.join(self.terms)}. Try: loss.terms[{name!r}] = DiceLoss()"
            )
        self.factors[name] = _factor(value)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"a term has a factor as long as it is there. Try: del loss.terms[{name!r}]")

    def __iter__(self) -> Iterator[str]:
        return iter(self.terms)

    def __len__(self) -> int:
        return len(self.terms)

    def __repr__(self) -> str:
        return repr(dict(self))


class CompoundLoss(Loss):
    """A weighted sum of losses: one forward and one backward pass over memory, whatever the number of terms.

    Args:
        terms: losses, or (weight, loss) pairs; a mapping also names them. Terms that do not read the logits in the same
            way (another mode, ``ignore_index``, activation) get a pass of their own.

    ``terms`` and ``weights_by_name`` hold the losses and their factors by name, and may be changed between steps.
    """

    weight_setting = ""  # where the factors follow from the settings, one of them

    def __init__(self, terms: Mapping[str, Any] | Iterable[Any]) -> None:
        super().__init__()
        self._set_terms(terms)

    @property
    def weights_by_name(self) -> Weights:
        """The factors of the terms."""
        return self._weights

    @weights_by_name.setter
    def weights_by_name(self, weights: Mapping[str, float]) -> None:
        self._weights.update(weights)

    def _set_terms(self, terms: Mapping[str, Any] | Iterable[Any]) -> None:
        named = list(terms.items()) if isinstance(terms, Mapping) else [(None, term) for term in terms]
        self.terms = Losses()
        self._weights = Weights(self.terms, type(self).__name__, self.weight_setting)
        for name, term in named:
            weight, loss = term if isinstance(term, tuple | list) else (1.0, term)
            if not _is_number(weight):
                raise TypeError(
                    f"a term must be a loss or (weight, loss); got {term!r}. "
                    "Try: CompoundLoss({'dice': (0.5, DiceLoss())})"
                )
            if type(loss) is CompoundLoss and name is None:
                for inner, part in loss.terms.items():
                    self._add(inner, weight * loss.weights_by_name[inner], part)
            else:
                self._add(name or snake(type(loss).__name__), weight, loss)
        if not self.terms:
            raise ValueError("a compound loss needs at least one term. Try: CompoundLoss({'dice': DiceLoss()})")

    def _add(self, name: str, weight: float, loss: Loss) -> None:
        name = name.replace(".", "_")
        unique, count = name, 1
        while unique in self.terms:
            count += 1
            unique = f"{name}_{count}"
        self.terms[unique] = loss
        self._weights.factors[unique] = float(weight)

    _fused: tuple[Any, bool] = (None, False)  # for which state, whether
    _groups: tuple[Any, list[tuple[list[str], Loss]]] = (None, [])  # for which state, the names of each pass and it

    def pass_key(self) -> tuple[Any, ...]:
        keys = {term.pass_key() for term in self.terms.values()}
        return keys.pop() if len(keys) == 1 else (id(self),)

    @property
    def fusable(self) -> bool:
        state, fused = self._fused
        if state != self._state():
            fused = len(self.passes()) == 1 and all(t.fusable for t in self.terms.values())
            self.__dict__["_fused"] = (self._state(), fused)
        return fused

    def passes(self) -> list[list[str]]:
        """The names of the terms that share a pass: they read the logits alike, and at most one measures distances."""
        found: list[tuple[Any, Loss | None, list[str]]] = []
        for name, term in self.terms.items():
            key = term.pass_key() if term.fusable else name
            measurer = term.measurer if term.fusable else None
            for i, (other_key, other, names) in enumerate(found):
                if key == other_key and (measurer is None or other is None or measurer is other):
                    names.append(name)
                    found[i] = (key, other or measurer, names)
                    break
            else:
                found.append((key, measurer, [name]))
        return [names for _, _, names in found]

    @property
    def measurer(self) -> Loss | None:
        return next((term.measurer for term in self.terms.values() if term.measurer is not None), None)

    def value(self, s: PixelStats) -> Array:
        return self.parts(s)[0]

    def parts(self, s: PixelStats) -> tuple[Array, list[Array]]:
        values = [term.value(s) for term in self.terms.values()]
        total: Array = 0.0
        for weight, value in zip(self.weights_by_name.values(), values, strict=True):
            total = total + weight * value
        return total, values

    def check(
        self,
        input: Tensor,
        target: Tensor,
        weight_map: Tensor | None,
        mask: Tensor | None,
        distance_map: Tensor | None = None,
    ) -> tuple[Tensors, Geometry]:
        some = self.measurer or next(iter(self.terms.values()))
        return some.check(input, target, weight_map, mask, distance_map)

    def term_names(self) -> list[str]:
        return list(self.terms)

    def _state(self) -> Any:
        factors: dict[str, float] = self._weights.factors
        terms: dict[str, Any] = self._modules["terms"]._modules  # type: ignore[union-attr]
        state: list[Any] = [self._changes]
        for name, term in terms.items():
            state += factors.get(name, 1.0), term.compiled_name, term._state()
        return tuple(state)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_groups": (None, [])}

    def groups(self) -> list[tuple[list[str], Loss]]:
        """The names of the terms of every pass, and the loss that runs it."""
        state = self._state()
        if state != self._groups[0]:
            weights, terms = self.weights_by_name, self.terms
            made = [
                (names, CompoundLoss({n: (weights[n], terms[n]) for n in names}) if names[1:] else terms[names[0]])
                for names in self.passes()
            ]
            self.__dict__["_groups"] = (state, made)
        return self._groups[1]

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        weight_map: Tensor | None = None,
        mask: Tensor | None = None,
        distance_map: Any = None,
        return_terms: bool = False,
    ) -> Any:
        maps = {} if distance_map is None else self._maps(distance_map)
        if self.fusable:
            given = next(iter(maps.values()), None)
            value, values = self.evaluate(*self.prepare(input, target, weight_map, mask, given), return_terms)
            return (value, dict(zip(self.terms, values, strict=True))) if return_terms else value
        total: Any = None
        values_by_name: dict[str, Tensor] = {}
        for names, group in self.groups():
            options: dict[str, Any] = {"weight_map": weight_map, "mask": mask}
            known = [maps[name] for name in names if name in maps]
            options |= {"distance_map": known[0]} if known else {}
            several = len(names) > 1
            value, found = (
                group(input, target, **options, return_terms=True)
                if several and return_terms
                else (group(input, target, **options), {})
            )
            values_by_name |= found if several else {names[0]: value.detach()}
            weight = 1.0 if several else self.weights_by_name[names[0]]
            value = value if weight == 1 else value * weight
            total = value if total is None else total + value
        return (total, {name: values_by_name[name] for name in self.terms}) if return_terms else total

    def _maps(self, given: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The distance maps that were given, by term."""
        names = [name for name, term in self.terms.items() if term.measurer is not None]
        if isinstance(given, Tensor) and len(names) == 1:
            return {names[0]: given}
        if not isinstance(given, Mapping) or not set(given) <= set(names):
            raise ValueError(
                f"distance_map must be a tensor for the one term that measures distances, or a dictionary by term; "
                f"such terms are {names}, got {sorted(given) if isinstance(given, Mapping) else type(given).__name__}. "
                f"Try: distance_map={{{', '.join(f'{name!r}: map' for name in names) or '...'}}}"
            )
        return dict(given)

    def extra_repr(self) -> str:
        return " + ".join(f"{weight:g} * {name}" for name, weight in self.weights_by_name.items())


class PresetLoss(CompoundLoss):
    """A compound whose terms and factors follow from its settings, also from those that are changed later."""

    def __init__(
        self,
        *,
        batch: bool = False,
        smooth: float | tuple[float, float] = 1.0,
        empty: Literal["formula", "zero", "skip"] = "formula",
        soft_label: Literal["product", "l1"] = "product",
        average: Literal["macro", "micro"] = "macro",
        **common: Unpack[Options],
    ) -> None:
        Loss.__init__(self, **common)
        self.batch, self.smooth, self.empty, self.soft_label, self.average = batch, smooth, empty, soft_label, average

    def build(self) -> dict[str, tuple[float, Loss]]:
        """The weighted terms."""
        raise NotImplementedError

    def pixel_options(self) -> Options:
        """What a pixel term shares with the rest; the other options belong to the region term."""
        return {
            "mode": self.mode,
            "from_logits": self.from_logits,
            "reduction": self.reduction,
            "ignore_index": self.ignore_index,
            "class_weight": self.class_weight,
        }

    def region_options(self) -> RegionOptions:
        return {
            **self.pixel_options(),
            "include_background": self.include_background,
            "batch": self.batch,
            "smooth": self.smooth,
            "empty": self.empty,
            "soft_label": self.soft_label,
            "average": self.average,
        }

    def rebuild(self) -> None:
        """Makes the terms; every constructor ends with it."""
        CompoundLoss._set_terms(self, self.build())

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if (
            not name.startswith("_")
            and name not in ("terms", "weights_by_name", "training")
            and "terms" in self._modules
        ):
            self.rebuild()

    def extra_repr(self) -> str:
        return Loss.extra_repr(self)
