"""local_moments: mean, variance and covariance in a window around every pixel, and what losses on windows share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..backends import pick
from .pixel_stats import FLOATING, Geometry, Tensors, _fail, _shape, may_look, raise_invalid

Kernel = Literal["gaussian", "box"]
Padding = Literal["zeros", "valid"]
MAX_SIZE = 65  # of a window that a kernel takes: 2 MAX_RADIUS + 1 of csrc/segfuse.h


class Moments(NamedTuple):
    """Of every window; those of ``b`` and the covariance are None without a second image."""

    mean_a: Tensor
    var_a: Tensor
    mean_b: Tensor | None
    var_b: Tensor | None
    cov: Tensor | None


@dataclass(frozen=True)
class Window:
    """Weights along every spatial axis; each row is symmetric and adds up to 1."""

    weights: tuple[tuple[float, ...], ...]
    valid: bool  # only windows inside the image

    def centres(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """How many windows there are along each axis."""
        return tuple(n - (len(w) - 1) * self.valid for n, w in zip(spatial, self.weights, strict=True))

    @property
    def native(self) -> bool:
        return all(len(w) <= MAX_SIZE for w in self.weights)


def make_window(
    size: int | Sequence[int],
    sigma: float | Sequence[float],
    kernel: str,
    padding: str,
    spatial: tuple[int, ...],
) -> Window:
    """Checks the settings of a window against the spatial shape it moves over."""
    return _make_window(
        tuple(size) if isinstance(size, list | tuple) else size,
        tuple(sigma) if isinstance(sigma, list | tuple) else sigma,
        kernel,
        padding,
        spatial,
    )


@lru_cache(maxsize=256, typed=True)
def _make_window(size: Any, sigma: Any, kernel: str, padding: str, spatial: tuple[int, ...]) -> Window:
    if kernel not in ("gaussian", "box"):
        _fail(f"kernel must be 'gaussian' or 'box'; got {kernel!r}", 'kernel="gaussian"')
    if padding not in ("zeros", "valid"):
        _fail(f"padding must be 'zeros' or 'valid'; got {padding!r}", 'padding="zeros"')
    axes = len(spatial)
    if not 1 <= axes <= 3:
        _fail(
            f"windows need one to three spatial axes; got {axes}, spatial shape {spatial}",
            "an input of shape (N, C, H, W) or (N, C, D, H, W)",
        )
    sizes, sigmas = _per_axis("window", size, axes), _per_axis("sigma", sigma, axes)
    for n in sizes:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1 or n % 2 == 0:
            _fail(f"window must be an odd number of pixels >= 1 (or one per axis); got {size!r}", "window=11")
    for s in sigmas:
        number = isinstance(s, int | float) and not isinstance(s, bool)
        if kernel == "gaussian" and not (number and 0 < s < math.inf):
            _fail(f"sigma must be a number of pixels > 0 (or one per axis); got {sigma!r}", "sigma=1.5")
    if padding == "valid":
        for n, length in zip(sizes, spatial, strict=True):
            if n > length > 0:
                _fail(
                    f"a window of {n} pixels does not fit into an axis of {length} (spatial shape {spatial}) "
                    "with padding='valid'",
                    f"window={length - 1 + length % 2}, or padding='zeros'",
                )
    return Window(tuple(_weights(n, s, kernel) for n, s in zip(sizes, sigmas, strict=True)), padding == "valid")


def _per_axis(name: str, value: Any, axes: int) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        return (value,) * axes
    if len(value) != axes:
        _fail(
            f"{name} must be one number or one per spatial axis ({axes}); got {value!r}", f"{name}={(value or (1,))[0]}"
        )
    return value


def _weights(size: int, sigma: float, kernel: str) -> tuple[float, ...]:
    r = size // 2
    if kernel == "box":
        return (1 / size,) * size
    g = [math.exp(-0.5 * (k / sigma) * (k / sigma)) for k in range(-r, r + 1)]
    total = math.fsum(g)
    return tuple(x / total for x in g)


def _images(a: Tensor, b: Tensor | None) -> None:
    for name, x in (("a", a), ("b", b)):
        if x is None and name == "b":
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(x).__name__}. Try: torch.as_tensor({name})")
        if x.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor; got layout {x.layout}. Try: {name}.to_dense()")
        if x.dtype not in FLOATING:
            raise TypeError(f"{name} must be float32, float64, float16 or bfloat16; got {x.dtype}. Try: {name}.float()")
        if x.ndim not in (3, 4, 5):
            _fail(f"{name} must be (N, C, *spatial) with one to three spatial axes; got {_shape(x)}", f"{name}[None]")
    if b is None:
        return
    if a.device != b.device:
        _fail(f"b is on {b.device}, a is on {a.device}", "b.to(a.device)")
    if a.shape != b.shape:
        _fail(f"a and b must have one shape; got {_shape(a)} and {_shape(b)}", "b.expand_as(a)")
    if (a.dtype == torch.float64) != (b.dtype == torch.float64):
        raise TypeError(f"a and b must both be float64 or neither; got {a.dtype} and {b.dtype}. Try: b.to(a.dtype)")


def backend(input: Tensor, window: Window, op: str = "local_moments") -> ModuleType:
    """Windows beyond ``MAX_SIZE`` are left to the reference."""
    if window.native:
        return pick(op, input)
    import importlib

    return importlib.import_module(f"..backends.reference.{op}", __package__)


class _LocalMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor | None, window: Window) -> tuple[Tensor, ...]:
        ctx.window = window
        ctx.save_for_backward(a, b)
        return backend(a, window).forward(a, b, window)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        a, b = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (a, b, *grads)):
            from ..backends.reference import local_moments as reference

            return (*reference.backward(a, b, ctx.window, grads, needs, create_graph=True), None)
        return (*backend(a, ctx.window).backward(a, b, ctx.window, grads, needs), None)


def moments(a: Tensor, b: Tensor | None, window: Window) -> Moments:
    """Differentiable moments of images that were checked."""
    rows = _LocalMoments.apply(a, b, window)
    return Moments(*rows, *(None,) * (5 - len(rows)))


def local_moments(
    a: Tensor,
    b: Tensor | None = None,
    *,
    window: int | Sequence[int] = 11,
    sigma: float | Sequence[float] = 1.5,
    kernel: Kernel = "gaussian",
    padding: Padding = "zeros",
) -> Moments:
    """Mean, variance and covariance in a window around every pixel, differentiable.

    Everything is evaluated relative to the centre pixel, so a flat window has variance exactly 0 in float32 too.

    Args:
        a: ``(N, C, *spatial)``, one to three spatial axes, floating point, any strides.
        b: a second image of the same shape.
        window: odd number of pixels along every axis, or one per axis.
        sigma: standard deviation of the Gaussian in pixels, or one per axis.
        kernel: ``"gaussian"`` weights, cut off at the window and normalised, or a ``"box"`` of equal ones.
        padding: ``"zeros"`` centres a window on every pixel, and pixels outside the image are 0 in it (weights are not
            normalised again); ``"valid"`` takes only the windows inside the image.
    Returns:
        ``(mean_a, var_a, mean_b, var_b, cov)``, each ``(N, C, *centres)``, float32 (float64 for float64 images); the
        last three are None without ``b``. Variances are those of the weights (not of a sample: no ``n / (n - 1)``).
    Raises:
        ValueError: shapes that differ, an even window, one larger than the image with ``"valid"``, ``sigma <= 0``.
        TypeError: a dtype that does not fit.

    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861 (the windows of SSIM).
    """
    _images(a, b)
    a, b = a.resolve_neg(), b if b is None else b.resolve_neg()
    return moments(a, b, make_window(window, sigma, kernel, padding, tuple(a.shape[2:])))


def takes_fused(g: Geometry, window: Window) -> bool:
    """Whether a fused op on windows takes this target: exclusive classes need class numbers."""
    return window.native and (g.index_target or not g.exclusive)


def checked(value: Tensor, broken: Tensor, x: Tensors, g: Geometry) -> Tensor:
    """The value, where the number of targets and weights out of range is 0; otherwise raises, or on a GPU, where that
    would wait for it, NaN."""
    if not may_look(x.input):
        return torch.where(broken > 0, torch.nan, value)
    if broken:
        raise_invalid(x, g)
    return value
