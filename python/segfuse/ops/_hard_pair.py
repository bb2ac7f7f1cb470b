"""What the ops on boundaries share: probabilities against a hard target, checked, with ignored pixels marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .pixel_stats import Geometry, Tensors, ignored, may_look, negative, raise_invalid

MAX_CLASSES = 2**15  # class numbers are int16


@dataclass(frozen=True)
class HardPair:
    """Tensors are contiguous; a group is one (sample, class) with class >= ``first``."""

    p: Tensor  # (N, C, *spatial) probabilities, float32 or float64; finite where ignored
    code: Tensor  # int16: class numbers (N, 1, *spatial), or 0 and 1 (N, C, *spatial); -1 is ignored
    weight: Tensor | None  # (N, 1 or C, *spatial), dtype of p
    index: bool  # code holds class numbers
    ignores: bool  # some pixel may be ignored
    first: int  # classes before it are left out

    @property
    def groups(self) -> tuple[int, int]:
        return self.p.shape[0], self.p.shape[1] - self.first

    def spread(self, x: Tensor) -> Tensor:
        """A tensor (N, 1 or C, *spatial) for every group."""
        return x.expand(self.p.shape)[:, self.first :]

    @property
    def y(self) -> Tensor:
        """Target of every group, 0 or 1; 0 where ignored."""
        shape = (1, -1, *[1] * (self.p.ndim - 2))
        one = torch.arange(self.p.shape[1], device=self.p.device).reshape(shape) if self.index else 1
        return (self.code == one)[:, self.first :].to(self.p.dtype)

    @property
    def valid(self) -> Tensor:
        """Of every group, bool."""
        return self.spread(self.code >= 0)

    @property
    def u(self) -> Tensor:
        """Weight of every pixel of every group, 0 where ignored."""
        m = self.valid.to(self.p.dtype)
        return m if self.weight is None else torch.where(self.valid, self.spread(self.weight), 0)

    def counts(self) -> Tensor:
        """Valid pixels of every group, ``(N, C)`` float64."""
        if self.ignores:
            return self.valid.flatten(2).sum(2, dtype=torch.float64)
        pixels = self.p[0, 0].numel() if self.p.numel() else 0
        return torch.full(self.groups, pixels, dtype=torch.float64, device=self.p.device)


def hard_pair(x: Tensors, g: Geometry, *, include_background: bool = True) -> HardPair:
    """Probabilities and labels of a checked call (:func:`~segfuse.ops.pixel_stats.check`).

    Raises:
        ValueError: a target that is neither 0, 1 nor ignored, or no class number; not 1 to 3 spatial axes; too many
            classes. On a GPU, where looking at values would wait for it, such a pixel gets probability NaN.
    """
    if not 1 <= len(g.spatial) <= 3:
        raise ValueError(
            f"input must have 1 to 3 spatial axes for a loss of distances; got shape {g.shape}. "
            "Try: input.flatten(4), if axes 2 and 3 are neighbours in space"
        )
    if (g.index_target or g.exclusive) and g.shape[1] > MAX_CLASSES:
        raise ValueError(
            f"a loss of distances takes at most {MAX_CLASSES} classes, whose numbers fit 16 bits; got {g.shape[1]}. "
            "Try: mode='multilabel', with one mask per channel"
        )
    code, gone, broken = _code(x, g)
    z = x.input.reshape(g.shape).contiguous()
    if z.dtype != torch.float64:
        z = z.float()
    weight = None if x.weight is None else _channel_axis(x.weight, g)
    if weight is not None and may_look(weight):
        if bool(negative(weight).any()):
            raise_invalid(x, g)
    elif weight is not None:
        broken = negative(weight) if broken is None else broken | negative(weight)
        weight = weight.to(z.dtype).abs()  # a pixel of no weight would not be seen
    if gone is not None:
        z = torch.where(gone, 0, z)
    if broken is not None:
        z = torch.where(broken, torch.nan, z)
    p = z if g.activation == "identity" else _Activation.apply(z, g.activation == "softmax")
    p = p.contiguous()  # where() may have taken the strides of the mask
    if weight is not None:
        weight = weight.to(p.dtype).contiguous()
    first = 1 if not include_background and g.shape[1] > 1 else 0
    return HardPair(p, code, weight, g.index_target or g.exclusive, gone is not None, first)


class _Activation(torch.autograd.Function):
    """Softmax over the classes, or a sigmoid. The last bits of PyTorch's own depend on the number of threads: where the
    share of a thread ends it takes another path."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, softmax: bool) -> Tensor:
        if z.is_cuda:
            p = torch.softmax(z, 1) if softmax else torch.sigmoid(z)
        elif softmax:
            e = (z - z.amax(1, keepdim=True)).exp_()
            p = e.div_(e.sum(1, keepdim=True))
        else:
            p = z.neg().exp_().add_(1).reciprocal_()
        ctx.softmax = softmax
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (p,) = ctx.saved_tensors
        g = grads[0] * p
        return g - p * (g.sum(1, keepdim=True) if ctx.softmax else g), None


def _channel_axis(x: Tensor, g: Geometry) -> Tensor:
    return x.unsqueeze(1) if x.ndim == len(g.spatial) + 1 else x


def _code(x: Tensors, g: Geometry) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """int16 labels, -1 where ignored, where that is, and where a label does not fit; None: nowhere."""
    labels, look = _channel_axis(x.target, g), may_look(x.target)
    wrong: Tensor | None = None
    if labels.dtype in (torch.bool, torch.uint16, torch.uint32, torch.uint64):
        labels = labels.to(torch.uint8 if labels.dtype == torch.bool else torch.int64)
    index = g.index_target
    if g.exclusive and not index:
        (labels, wrong), index = _classes(labels, g, look), True
    elif look and labels.numel() and labels.dtype.is_floating_point:
        soft = labels[(labels > 0) & (labels < (g.shape[1] - 1 if index else 1)) & (labels != labels.round())]
        _refuse_soft(soft, g)
    top = g.shape[1] - 1 if index else 1
    if labels.numel() == 0:
        return labels.to(torch.int16), None, None
    if look:
        low, high = labels.aminmax()
        if x.mask is None and low >= 0 and high <= top and not 0 <= g.ignore_index <= top:
            return labels.contiguous().to(torch.int16), None, None
    gone = ignored(labels, g.ignore_index)
    if x.mask is not None:
        gone = gone | (_channel_axis(x.mask, g) == 0)
    fits = (labels >= 0) & (labels <= top)
    if look:
        if bool((~gone & ~fits).any()):
            raise_invalid(x, g)
        return labels.masked_fill(gone, -1).contiguous().to(torch.int16), gone, None
    if labels.dtype.is_floating_point:
        fits = fits & (labels == labels.round())
    broken = ~gone & (~fits if wrong is None else ~fits | wrong)
    return labels.masked_fill(broken, 0).masked_fill(gone, -1).contiguous().to(torch.int16), gone, broken


def _classes(hot: Tensor, g: Geometry, look: bool) -> tuple[Tensor, Tensor]:
    """Class numbers ``(N, 1, *spatial)`` of a one-hot target, and where it is none; raises if it may look."""
    gone = ignored(hot, g.ignore_index).any(1, keepdim=True)
    one = hot == 1
    wrong = ~gone & ((one.sum(1, keepdim=True) != 1) | ~(one | (hot == 0)).all(1, keepdim=True))
    if look and bool(wrong.any()):
        values = hot.movedim(1, -1)[wrong[:, 0]]
        _refuse_soft(values[(values != 0) & (values != 1)], g)
        _refuse_soft(values.to(torch.float32).sum(-1), g, "one class per pixel; got a sum over classes of ")
    return one.to(torch.uint8).argmax(1, keepdim=True).masked_fill(gone, g.ignore_index), wrong


def _refuse_soft(found: Tensor, g: Geometry, what: str = "0 or 1 everywhere; got ") -> None:
    if found.numel():
        raise ValueError(
            f"a loss of distances needs a hard target, {what}{float(found.reshape(-1)[0]):g}. "
            f"Try: {'target.argmax(1)' if g.exclusive else '(target > 0.5)'}"
        )


def groups_first(grad: Tensor, pair: HardPair) -> Tensor:
    """``(N, C - first)`` numbers as ``(N, C, 1, ...)``, 0 for the classes left out."""
    grad = torch.nn.functional.pad(grad, (pair.first, 0)) if pair.first else grad
    return grad.to(pair.p.dtype).reshape(*grad.shape, *[1] * (pair.p.ndim - 2))


class _ByGroup(torch.autograd.Function):
    """A number per group whose derivative by p the forward pass has written already; see :func:`by_group`."""

    @staticmethod
    def forward(
        ctx: Any, p: Tensor, pair: HardPair, kernel: Callable[..., Any], reference: Callable[[HardPair], Tensor]
    ) -> Tensor:
        pair = replace(pair, p=p)
        value, grad = kernel(pair, ctx.needs_input_grad[0])
        ctx.pair, ctx.reference = replace(pair, p=p.detach()), reference
        ctx.save_for_backward(p, grad)
        out: Tensor = value
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        p, grad = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            value = ctx.reference(replace(ctx.pair, p=p))
            return torch.autograd.grad(value, p, grads[0], create_graph=True)[0], None, None, None
        return grad * groups_first(grads[0], ctx.pair), None, None, None


def by_group(pair: HardPair, kernel: Callable[..., Any], reference: Callable[..., Tensor], **settings: Any) -> Tensor:
    """A number per group ``(N, C)``, differentiable by ``pair.p``.

    ``kernel(pair, with_gradient, **settings)`` returns it with its derivative by p; ``reference(pair, **settings)`` can
    be differentiated again and is used under ``create_graph=True``.
    """
    return _ByGroup.apply(pair.p, pair, partial(kernel, **settings), partial(reference, **settings))
