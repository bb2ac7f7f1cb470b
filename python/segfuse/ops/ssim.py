"""ssim: the structural similarity of prediction and target, summed over the windows of every sample and class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import local_moments
from .local_moments import Window
from .pixel_stats import Geometry, Tensors, raise_invalid


@dataclass(frozen=True)
class Ssim:
    """Settings of a call."""

    window: Window
    c1: float
    c2: float
    contrast: bool = False  # without the luminance factor, as the finer scales of MS-SSIM
    first_class: int = 0  # 1 leaves out the background


class _Ssim(torch.autograd.Function):
    """Sums ``(2, N, C)``. Where the groups of a batch do not meet, the forward sweep writes the gradient of every group
    by its sum; backward scales it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, x: Tensors, g: Geometry, o: Ssim, ahead: bool) -> Tensor:
        x = x._replace(input=input)
        sums, invalid, grad = local_moments.backend(input, o.window, "ssim").forward(x, g, o, ahead)
        if invalid:
            raise_invalid(x, g)
        ctx.geometry, ctx.settings, ctx.by_group, ctx.ahead = g, o, ahead, grad
        ctx.save_for_backward(*x)
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, g, o = Tensors(*ctx.saved_tensors), ctx.geometry, ctx.settings
        if torch.is_grad_enabled() and (x.input.requires_grad or grads[0].requires_grad):
            from ..backends.reference import ssim as reference

            sums, _ = reference.sums(x, g, o)
            (grad,) = torch.autograd.grad(sums, x.input, grads[0], create_graph=True)
            return grad, None, None, None, None
        ahead, ctx.ahead = ctx.ahead, None
        by_sum = grads[0][0]
        if ctx.by_group:
            if ahead is None:  # it was given away: this is the second time
                ahead = local_moments.backend(x.input, o.window, "ssim").forward(x, g, o, True)[2]
            view = ahead if ahead.ndim == len(g.shape) else ahead.unsqueeze(1)
            view.mul_(by_sum.to(view.dtype).reshape(*g.shape[:2], *(1,) * len(g.spatial)))
            return ahead, None, None, None, None
        module = local_moments.backend(x.input, o.window, "ssim")
        return module.backward(x, g, o, by_sum.contiguous()), None, None, None, None


def sums(x: Tensors, g: Geometry, o: Ssim) -> tuple[Tensor, Tensor]:
    """``sum u SSIM`` and ``sum u`` over the windows of every sample and class, each ``(N, C)`` float64."""
    if local_moments.takes_fused(g, o.window) and not _on_reference(x, o):
        ahead = x.input.requires_grad and torch.is_grad_enabled() and g.activation != "softmax"
        ahead = ahead and x.input.dtype in (torch.float32, torch.float64)  # half would round twice
        rows = _Ssim.apply(x.input, x, g, o, ahead)
    else:
        from ..backends.reference import ssim as reference

        moments = None if _on_reference(x, o) else local_moments.moments
        rows = local_moments.checked(*reference.sums(x, g, o, moments), x, g)
    return rows[0], rows[1]


def pyramid(x: Tensors, g: Geometry, levels: int) -> list[tuple[Tensors, Geometry]]:
    """The coarser scales of a problem: p, y, weights and valid pixels after averaging blocks of 2 along every axis.

    A block with an ignored pixel is ignored. Probabilities are differentiable.
    """
    from ..backends.reference import ssim as reference

    s, p, y = reference.images(x, g)
    m = s.m.reshape(g.shape).to(p.dtype)
    u = None if x.weight is None else s.u.reshape(g.shape)
    found = []
    for level in range(1, levels + 1):
        if any(0 < n < 2 for n in p.shape[2:]):
            raise ValueError(
                f"the image {g.spatial} has no scale {level + 1}: an axis would have no pixel left. "
                f"Try: scale_weights of length {level}"
            )
        m = (_halve(m) == 1).to(p.dtype)
        p, y = torch.where(m > 0, _halve(p), 0), torch.where(m > 0, _halve(y), 0)
        u = None if u is None else _halve(u)
        # m says what is ignored: no mean of targets is -100.
        shape = Geometry(tuple(p.shape), "multilabel", "identity", False, False, -100, tuple(p.shape))
        found.append((Tensors(p, y, u, m), shape))
    return found


def _halve(x: Tensor) -> Tensor:
    for axis in range(2, x.ndim):
        n = x.shape[axis] // 2
        x = (x.narrow(axis, 0, 2 * n).unflatten(axis, (n, 2))).mean(axis + 1)
    return x


def _on_reference(x: Tensors, o: Ssim) -> bool:
    return local_moments.backend(x.input, o.window, "ssim").__name__.endswith("reference.ssim")
