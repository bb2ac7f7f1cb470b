"""pixel_stats: one pass over logits and target gives every sum that a distribution or region loss is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, prod
from operator import index
from types import ModuleType
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..backends import DEBUG, pick

Mode = Literal["auto", "binary", "multilabel", "multiclass"]
MODES = ("auto", "binary", "multilabel", "multiclass")

#: Sums per (sample, class) in the order of ``enum Moment`` in csrc/segfuse.h. m: valid, u: m times the weight map,
#: p: probability, y: target, d: distance map.
MOMENTS = {
    "count": "sum m",
    "true_count": "sum m y",
    "n": "sum u",
    "true": "sum u y",
    "true2": "sum u y^2",
    "pred": "sum u p",
    "pred2": "sum u p^2",
    "tp": "sum u p y",
    "tp2": "sum u p^2 y",
    "l1": "sum u |p - y|",
    "sq_true": "sum u y (p - y)^2",
    "sq_false": "sum u (1 - y) (p - y)^2",
    "distance_pred": "sum u d p",
    "distance_sq": "sum u d (p - y)^2",
}
COUNTS = frozenset(("count", "true_count", "n", "true", "true2"))  # of the target alone: no gradient
#: Terms in the order of ``enum TermKind``. Each is summed as (sum u y f(p), sum u (1 - y) f(1 - p)).
TERMS = ("focal", "focal_all", "power", "dsc", "dsc_pixel")
MAX_TERMS = 16  # as in csrc/segfuse.h
NEVER = -(1 << 63)  # an ignore_index that no label has
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LABELS = FLOATING + (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


class Term(NamedTuple):
    """A pixel term: its kind, the exponent ``a`` and, for ``dsc_pixel``, the smoothing ``b``.

    ``mapped`` terms weigh every pixel by the distance map too; under softmax that map has one value per pixel.
    """

    kind: str
    a: float = 0.0
    b: float = 0.0
    mapped: bool = False


Row = str | tuple[Term, int]  # a moment, or (term, part): part 0 belongs to y, part 1 to 1 - y


class Plan:
    """Which sums one pass makes, and in which row each lies."""

    def __init__(self, wanted: Iterable[Row]) -> None:
        wanted = list(wanted)
        self.moments = tuple(name for name in MOMENTS if name in wanted)
        self.terms = tuple(dict.fromkeys(row[0] for row in wanted if isinstance(row, tuple)))
        if len(self.terms) > MAX_TERMS:
            raise ValueError(
                f"one pass takes at most {MAX_TERMS} different pixel terms; got {len(self.terms)}. "
                f"Try: two losses of fewer terms, added as values: loss_a(input, target) + loss_b(input, target)"
            )
        self.rows = len(self.moments) + 2 * len(self.terms)
        number = {name: i for i, name in enumerate(self.moments)}
        first = {term: len(number) + 2 * i for i, term in enumerate(self.terms)}
        self._first, self._number = first, number

    @cached_property
    def native(self) -> dict[str, Any]:
        """The plan as the bindings take it; a moment that is not wanted has row -1."""
        return {
            "moments": [self._number.get(name, -1) for name in MOMENTS],
            "terms": [(TERMS.index(t.kind), t.a, t.b, self._first[t], t.mapped) for t in self.terms],
            "rows": self.rows,
        }

    def row(self, row: Row) -> int:
        return self._number[row] if isinstance(row, str) else self._first[row[0]] + row[1]

    @cached_property
    def counts(self) -> Plan:
        """The part of this plan that needs the target alone."""
        return Plan(name for name in self.moments if name in COUNTS)


class Tensors(NamedTuple):
    input: Tensor
    target: Tensor
    weight: Tensor | None
    mask: Tensor | None
    distance: Tensor | None = None  # (N, *spatial), (N, 1, *spatial) or (N, C, *spatial), of either sign


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a call looks like once its arguments are checked."""

    shape: tuple[int, ...]  # (N, C, *spatial)
    mode: str  # binary, multilabel or multiclass
    activation: str  # sigmoid, softmax or identity
    exclusive: bool  # the classes of a pixel exclude each other: cross-entropy looks at the target class alone
    index_target: bool  # target holds class numbers; otherwise y itself, shaped like the logits
    ignore_index: int
    map_shape: tuple[int, ...]  # of the loss map

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.shape[2:]

    @property
    def pixels(self) -> int:
        return prod(self.shape[2:])


def _fail(text: str, call: str) -> NoReturn:
    raise ValueError(f"{text}. Try: {call}")


def _shape(x: Tensor) -> str:
    return f"{tuple(x.shape)}"


def check(
    input: Tensor,
    target: Tensor,
    *,
    mode: str = "auto",
    from_logits: bool = True,
    one_vs_rest: bool = False,
    ignore_index: int = -100,
    weight_map: Tensor | None = None,
    mask: Tensor | None = None,
    distance_map: Tensor | None = None,
) -> tuple[Tensors, Geometry]:
    """Checks every argument of a call; what comes out may be passed to a kernel as raw pointers.

    ``one_vs_rest`` treats every class of a multiclass target as a sigmoid problem of its own.
    """
    optional = {"weight_map": weight_map, "mask": mask, "distance_map": distance_map}
    for name, x in {"input": input, "target": target, **optional}.items():
        if x is None and name in optional:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(x).__name__}. Try: torch.as_tensor({name})")
        if x.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor; got layout {x.layout}. Try: {name}.to_dense()")
        if x.device != input.device:
            _fail(f"{name} is on {x.device}, input is on {input.device}", f"{name}.to(input.device)")
    if input.dtype not in FLOATING:
        raise TypeError(
            f"input must be float32, float64, float16 or bfloat16 (logits, or probabilities with from_logits=False); "
            f"got {input.dtype}. Try: loss(input.float(), target), and mind the order: input first, then target"
        )
    for name, x in {"target": target, **optional}.items():
        if x is not None and x.dtype not in LABELS:
            raise TypeError(
                f"{name} must be bool, an integer or a floating-point tensor; got {x.dtype}. Try: {name}.float()"
            )
    ignore_index = check_ignore_index(ignore_index)
    if mode not in MODES:
        _fail(f"mode must be one of {', '.join(MODES)}; got {mode!r}", 'mode="auto"')
    if input.ndim < 1 or (mode != "binary" and input.ndim < 2):
        _fail(f"input must be (N, C, *spatial); got {_shape(input)}", "loss(input[None], target[None])")

    guessed = mode == "auto"
    if guessed:
        mode = "binary" if input.shape[1] == 1 else "multiclass"
    if mode == "binary":
        channel = input.ndim >= 2 and input.shape[1] == 1
        if not channel and input.shape != target.shape:
            _fail(
                f"mode='binary' needs input (N, 1, *spatial) or input and target of one shape; "
                f"got input {_shape(input)} and target {_shape(target)}",
                "mode='multiclass' for class numbers, mode='multilabel' for one mask per channel",
            )
        spatial = tuple(input.shape[2:] if channel else input.shape[1:])
        shape = (input.shape[0], 1, *spatial)
    else:
        shape = tuple(input.shape)
        spatial = shape[2:]
    N, C = shape[:2]
    if mode == "multiclass" and C == 1:
        _fail(
            f"mode='multiclass' needs at least two channels: softmax over one channel is always 1; "
            f"got input {_shape(input)}",
            "mode='binary'",
        )
    if C == 0:
        _fail(f"input has no channel; got {_shape(input)}", "an input of shape (N, C, *spatial)")

    given = tuple(target.shape)
    flat, single = (N, *spatial), (N, 1, *spatial)
    index_target = mode == "multiclass" and given in (flat, single) and given != shape
    if not index_target and given != shape and not (mode == "binary" and given == flat):
        if mode == "multiclass":
            if given == tuple(input.shape[1:]):
                _fail(f"input {shape} and target {given} have no axis of samples", "loss(input[None], target[None])")
            _fail(
                f"target must be {flat} or {single} class numbers, or {shape} one-hot or probabilities, "
                f"for input {shape}; got {given}",
                "target.squeeze(1) for an extra axis, mode='multilabel' for independent masks",
            )
        _fail(
            f"target must be {shape}{' or ' + str(flat) if mode == 'binary' else ''} for mode={mode!r}; got {given}",
            "target.reshape(input.shape)",
        )
    for name, x in optional.items():
        if x is None:
            continue
        per_class = name != "mask" or mode != "multiclass"
        if tuple(x.shape) not in ((flat, single, shape) if per_class else (flat, single)):
            allowed = f"{flat}, {single} or {shape}" if per_class else f"{flat} or {single}"
            _fail(f"{name} must be {allowed} for input {shape}; got {_shape(x)}", f"{name}.expand(...) to one of these")
    for name, x in {"target": target, **optional}.items():
        if x is not None and x.requires_grad:
            _fail(f"{name} carries a gradient, which is not computed", f"{name}.detach()")

    exclusive = mode == "multiclass" and not one_vs_rest
    activation = "identity" if not from_logits else "softmax" if exclusive else "sigmoid"
    map_shape = flat if exclusive else tuple(input.shape)
    g = Geometry(shape, mode, activation, exclusive, index_target, ignore_index, map_shape)
    if exclusive and not index_target and ignore_index in (0, 1):
        _fail(
            f"ignore_index={ignore_index} leaves out every pixel of a one-hot target: each has a {ignore_index}",
            f"mask=(labels != {ignore_index}), or class numbers as target",
        )
    if needs_mask(target, g) and _may_ignore(target, ignore_index):
        kept = ~ignored(target, ignore_index).any(1)
        mask = kept if mask is None else kept & (mask.reshape(flat) != 0)
    tensors = Tensors(*(_plain(x) for x in (input, target, weight_map, mask, distance_map)))
    if guessed and mode == "multiclass" and not index_target and may_look(target):
        _check_one_class(tensors, g)
    return tensors, g


def _check_one_class(x: Tensors, g: Geometry) -> None:
    """A target shaped like the logits may as well be masks that overlap, or one mask without its channel."""
    y = x.target.detach()
    if type(y) is not Tensor or torch.onnx.is_in_onnx_export():
        return
    total = y.sum(1, dtype=torch.float32)
    wrong = ~((total - 1).abs() < 0.1)
    if not bool(wrong.any()):
        return
    known = y if y.dtype.is_floating_point else y.to(torch.int64)
    wrong &= ((known >= 0) & (known <= 1)).all(1)  # otherwise the kernel says what is wrong, or a class is ignored
    if x.mask is not None:
        wrong &= x.mask.reshape(wrong.shape) != 0
    if bool(wrong.any()):
        _fail(
            f"mode='auto' takes channels as classes, of which a pixel has one; the target {_shape(y)} adds up to "
            f"{float(total[wrong][0]):g} over the channels of a pixel",
            "mode='multilabel' for masks that may overlap, mode='binary' for (N, *spatial) without channels, "
            "mode='multiclass' to take it as it is",
        )


def check_ignore_index(value: Any) -> int:
    if not isinstance(value, bool) and hasattr(value, "__index__") and -(2**63) <= (number := index(value)) < 2**63:
        return number
    raise TypeError(
        f"ignore_index must be an int of 64 bits; got {value!r}. Try: ignore_index=-100, which no label has"
    )


def needs_mask(target: Tensor, g: Geometry) -> bool:
    """One ignored class drops the pixel; kernels look at the classes of a pixel together for a softmax alone."""
    return g.exclusive and g.activation == "identity" and not g.index_target and holds(target.dtype, g.ignore_index)


def _plain(x: Tensor | None) -> Any:
    """Strips tensor subclasses and lazy signs; parameters, plain tensors and those of torch.compile's traces pass."""
    if x is None or type(x) is Tensor or type(x) is torch.nn.Parameter:
        return x if x is None or not x.is_neg() else x.resolve_neg()
    from torch._subclasses.fake_tensor import FakeTensor

    return x if isinstance(x, FakeTensor) else x.as_subclass(Tensor).resolve_neg()


def may_look(x: Tensor) -> bool:
    """Whether a check may read values: on a GPU that waits for the device, and is for debugging alone."""
    return DEBUG or not x.is_cuda


def holds(dtype: torch.dtype, label: int) -> bool:
    """Whether a tensor of this type can have the label."""
    if dtype == torch.bool:
        return label in (0, 1)
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        return abs(label) <= info.max and (label == 0 or abs(label) // (label & -label) < 2 / info.eps)
    return torch.iinfo(dtype).min <= label <= torch.iinfo(dtype).max


def _may_ignore(target: Tensor, ignore_index: int) -> bool:
    """``False`` where the range of the labels says that none is ignored, which is seen soon on a CPU."""
    wide = target.dtype in (torch.uint16, torch.uint32, torch.uint64)  # PyTorch has no range of these
    if (
        type(target) is not Tensor
        or wide
        or not target.numel()
        or not may_look(target)
        or torch.onnx.is_in_onnx_export()
    ):
        return True
    low, high = torch.aminmax(target)
    return not bool((ignore_index < low) | (ignore_index > high))


def ignored(target: Tensor, ignore_index: int) -> Tensor:
    """Where a target has a label. Nowhere if its dtype cannot hold it: a byte of 156 equals -100 for PyTorch."""
    if holds(target.dtype, ignore_index):
        return target == ignore_index
    return torch.zeros_like(target, dtype=torch.bool)


def negative(weight: Tensor) -> Tensor:
    """Where a weight is below 0. PyTorch cannot compare its unsigned integers of more than one byte."""
    unsigned = weight.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return torch.zeros_like(weight, dtype=torch.bool) if unsigned else weight < 0


_PART = 1 << 24  # labels looked at together: as int64 they take 8 bytes each


def raise_invalid(x: Tensors, g: Geometry) -> NoReturn:
    """Says which value broke the rules that a kernel counted as broken. Slow: runs only on the way to an error."""
    if x.weight is not None and bool(negative(x.weight).any()):
        raise ValueError(f"weight_map must be >= 0; got {float(x.weight.min()):g}. Try: weight_map.clamp(min=0)")
    mask = x.mask
    if mask is not None and mask.ndim != x.target.ndim:
        mask = mask.reshape(x.target.shape) if mask.numel() == x.target.numel() else mask[:, None]
    top = g.shape[1] - 1 if g.index_target else 1
    labels, kept = x.target.reshape(-1), None if mask is None else mask.expand_as(x.target).reshape(-1)
    at = -1
    for begin in range(0, labels.numel(), _PART):
        part = labels[begin : begin + _PART]
        y = part if part.dtype.is_floating_point else part.to(torch.int64)
        wrong = ~((y >= 0) & (y <= top) & (y == y.round() if g.index_target else True)) & ~ignored(part, g.ignore_index)
        if kept is not None:
            wrong &= kept[begin : begin + _PART] != 0
        if bool(wrong.any()):
            at = begin + int(wrong.to(torch.uint8).argmax())
            break
    value = labels[at].item()
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), x.target.shape))
    whole = isfinite(value) and value == round(value)
    ignore = f"ignore_index={value:.0f} where that means no label"
    if g.index_target:
        rule = f"class numbers 0 to {top}"
        call = ignore if whole else "target.long()"
    else:
        rule = "values from 0 to 1" if x.target.dtype.is_floating_point else "0 or 1"
        object = [f"(target > 0) for a mask of 0 and {value:g}"] if value > 1 else []
        inside = "target.clamp(0, 1)" if isfinite(value) else "target.nan_to_num(0).clamp(0, 1)"
        call = ", or ".join([*object, ignore]) if whole else inside
    if g.ignore_index != NEVER:
        rule += f" or ignore_index={g.ignore_index}"
    raise ValueError(f"target must hold {rule}; got {value!r} at {where}. Try: {call}")


class Segments(NamedTuple):
    """Groups other than the samples: sums are added up over the pixels of each, ``(K, groups, 1)``; for one class."""

    of_pixel: Tensor  # (N, *spatial) int32, contiguous, 0 to groups - 1
    groups: int


def forward(x: Tensors, g: Geometry, plan: Plan, segments: Segments | None = None) -> Tensor:
    """Sums ``(K, N, C)``."""
    sums, invalid = backend(x.input, g, plan).forward(x, g, plan, segments)
    if invalid:
        raise_invalid(x, g)
    return sums


def backward(
    x: Tensors,
    g: Geometry,
    plan: Plan,
    coefficient: Tensor,
    upstream: Tensor | None = None,
    segments: Segments | None = None,
) -> Tensor:
    """d(sum(coefficient * sums)) / d(input).

    Under ``create_graph=True`` by the reference, which can be differentiated again.
    """
    if torch.is_grad_enabled() and (x.input.requires_grad or coefficient.requires_grad):
        from ..backends.reference import pixel_stats as reference

        return reference.backward(x, g, plan, coefficient, upstream, segments)
    return backend(x.input, g, plan, map=upstream is not None).backward(x, g, plan, coefficient, upstream, segments)


class _PixelStats(torch.autograd.Function):
    """Differentiable sums: the general door, for formulas that are finished by torch."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, x: Tensors, g: Geometry, plan: Plan, segments: Segments | None) -> Tensor:
        ctx.geometry, ctx.plan, ctx.segments = g, plan, segments
        x = x._replace(input=input)
        ctx.save_for_backward(*x)
        return forward(x, g, plan, segments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x = Tensors(*ctx.saved_tensors)
        found = backward(x, ctx.geometry, ctx.plan, grads[0].contiguous(), segments=ctx.segments)
        return found, None, None, None, None


def backend(input: Tensor, g: Geometry, plan: Plan, map: bool = False) -> ModuleType:
    """Two rare forms are left to the reference: exclusive classes given as probabilities, and their self-adjusting
    Dice, as a loss map; and a power of the entropy of soft labels over probabilities."""
    kinds = {term.kind for term in plan.terms}
    raw = g.exclusive and g.activation == "identity"
    if (map and (raw or (g.exclusive and kinds & {"dsc", "dsc_pixel"}))) or (
        raw and "power" in kinds and not g.index_target
    ):
        from ..backends.reference import pixel_stats as reference

        return reference
    return pick("pixel_stats", input)


class _LossMap(torch.autograd.Function):
    """The loss of every pixel. The coefficients are constants."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, x: Tensors, g: Geometry, plan: Plan, coefficient: Tensor) -> Tensor:
        ctx.geometry, ctx.plan = g, plan
        x = x._replace(input=input)
        ctx.save_for_backward(*x, coefficient)
        out, invalid = backend(input, g, plan, map=True).loss_map(x, g, plan, coefficient)
        if invalid:
            raise_invalid(x, g)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *x, coefficient = ctx.saved_tensors
        return backward(Tensors(*x), ctx.geometry, ctx.plan, coefficient, grads[0]), None, None, None, None


def sums(x: Tensors, g: Geometry, plan: Plan, segments: Segments | None = None) -> Tensor:
    """Differentiable sums ``(K, N, C)`` in float64; ``(K, groups, 1)`` over segments."""
    if segments is not None:
        index, groups = segments
        expected = (g.shape[0], *g.spatial)
        if g.shape[1] != 1 or index.shape != expected or index.dtype != torch.int32 or not index.is_contiguous():
            _fail(
                f"segments must be contiguous int32 of shape {expected} for one class; "
                f"got {index.dtype} {_shape(index)} for {g.shape[1]}",
                "segments.to(torch.int32).contiguous()",
            )
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < groups:
            _fail(
                f"segments must be 0 to {groups - 1}; got {int(index.min())} to {int(index.max())}",
                f"groups={int(index.max()) + 1}",
            )
    return _PixelStats.apply(x.input, x, g, plan, segments)


def loss_map(x: Tensors, g: Geometry, plan: Plan, coefficient: Tensor) -> Tensor:
    """Differentiable loss of every pixel, ``g.map_shape``, 0 where ignored."""
    return _LossMap.apply(x.input, x, g, plan, coefficient)


def pixel_stats(
    input: Tensor,
    target: Tensor,
    wanted: Sequence[str] = ("tp", "pred", "true", "n"),
    *,
    mode: Mode = "auto",
    from_logits: bool = True,
    ignore_index: int = -100,
    weight_map: Tensor | None = None,
    mask: Tensor | None = None,
    distance_map: Tensor | None = None,
) -> dict[str, Tensor]:
    """Soft confusion sums of every sample and class in one pass over memory, differentiable.

    Args:
        input: logits ``(N, C, *spatial)``, or probabilities with ``from_logits=False``.
        target: class numbers ``(N, *spatial)``, or 0/1 or soft masks shaped like ``input``.
        wanted: names of the sums, from ``count true_count n true true2 pred pred2 tp tp2 l1 sq_true sq_false
            distance_pred distance_sq`` (``segfuse.ops.pixel_stats.MOMENTS`` says what each is).
        mode: ``"binary"`` and ``"multilabel"`` use a sigmoid, ``"multiclass"`` a softmax.
        ignore_index: target value whose pixels are left out.
        weight_map: ``(N, *spatial)``, ``(N, 1, *spatial)`` or ``(N, C, *spatial)``, >= 0.
        mask: nonzero where a pixel counts.
        distance_map: what the last two sums weigh the pixels by, shaped like ``weight_map``, of either sign.
    Returns:
        for every name a float64 tensor ``(N, C)``.
    Raises:
        ValueError: a shape or a target value does not fit; a name is unknown.
        TypeError: a dtype does not fit.

    Source: the sums of Milletari et al. 2016 (arXiv 1606.04797) and Salehi et al. 2017 (arXiv 1706.05721).
    """
    names = not isinstance(wanted, str) and isinstance(wanted, Iterable)
    if not names or any(name not in MOMENTS for name in wanted):
        _fail(
            f"wanted must be a sequence of names from {', '.join(MOMENTS)}; got {wanted!r}",
            'wanted=("tp", "pred", "true")',
        )
    if distance_map is None and any(name.startswith("distance") for name in wanted):
        _fail(f"a sum with distances needs a distance_map; got wanted={wanted!r} and none", "distance_map=...")
    x, g = check(
        input,
        target,
        mode=mode,
        from_logits=from_logits,
        ignore_index=ignore_index,
        weight_map=weight_map,
        mask=mask,
        distance_map=distance_map,
    )
    plan = Plan(wanted)
    rows = sums(x, g, plan)
    return {name: rows[plan.row(name)] for name in wanted}
