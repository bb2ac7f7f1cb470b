"""cmssl: cross-entropy where the structure of prediction and target differs, summed for every sample and class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import local_moments
from .local_moments import Window
from .pixel_stats import Geometry, Tensors, raise_invalid

SCOPES = ("batch", "sample", "class", "fixed")  # as enum Scope in csrc/segfuse.h


@dataclass(frozen=True)
class Cmssl:
    """Settings of a call. ``cut``: the share of the largest e in ``scope`` that a pixel must exceed, or for ``"fixed"``
    e itself."""

    window: Window
    c4: float
    variance_eps: float
    cut: float
    scope: str
    detach: bool  # e is a constant
    first_class: int = 0  # 1 leaves out the background


class _Cmssl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, x: Tensors, g: Geometry, o: Cmssl) -> Tensor:
        x = x._replace(input=input)
        sums, threshold, invalid = local_moments.backend(input, o.window, "cmssl").forward(x, g, o)
        if invalid:
            raise_invalid(x, g)
        ctx.geometry, ctx.settings = g, o
        ctx.save_for_backward(*x, threshold)
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *tensors, threshold = ctx.saved_tensors
        x, g, o = Tensors(*tensors), ctx.geometry, ctx.settings
        if torch.is_grad_enabled() and (x.input.requires_grad or grads[0].requires_grad):
            from ..backends.reference import cmssl as reference

            sums, _ = reference.sums(x, g, o)
            (grad,) = torch.autograd.grad(sums, x.input, grads[0], create_graph=True)
            return grad, None, None, None
        module = local_moments.backend(x.input, o.window, "cmssl")
        return module.backward(x, g, o, threshold, grads[0][0].contiguous()), None, None, None


def sums(x: Tensors, g: Geometry, o: Cmssl) -> tuple[Tensor, Tensor]:
    """``sum u f e l`` and ``sum f`` of every sample and class, each ``(N, C)`` float64. f has no gradient."""
    if local_moments.takes_fused(g, o.window) and not _on_reference(x, o):
        rows = _Cmssl.apply(x.input, x, g, o)
    else:
        from ..backends.reference import cmssl as reference

        moments = None if _on_reference(x, o) else local_moments.moments
        rows = local_moments.checked(*reference.sums(x, g, o, moments), x, g)
    return rows[0], rows[1].detach()


def loss_map(x: Tensors, g: Geometry, o: Cmssl, class_weight: Tensor | None) -> Tensor:
    """``u f e l`` of every pixel, ``g.map_shape``; on local_moments."""
    from ..backends.reference import cmssl as reference

    moments = None if _on_reference(x, o) else local_moments.moments
    value, _, broken = reference.terms(x, g, o, moments)
    value = local_moments.checked(value, broken, x, g)
    if class_weight is not None:
        value = value * class_weight.to(value.dtype).reshape(1, -1, 1)
    return (value.sum(1) if g.exclusive else value).reshape(g.map_shape)


def _on_reference(x: Tensors, o: Cmssl) -> bool:
    return local_moments.backend(x.input, o.window, "cmssl").__name__.endswith("reference.cmssl")
