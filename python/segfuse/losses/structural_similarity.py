"""Losses that compare the structure around every pixel: SSIM and CMSSL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..ops import cmssl, local_moments, ssim
from ..ops.formula import one_per_class
from ..ops.local_moments import Kernel, Padding, Window, make_window
from ..ops.pixel_stats import Geometry, Tensors
from ._base import Loss, Options, beside, number, one_of, weights_tuple
from .cross_entropy import CrossEntropyLoss
from .focal import FocalLoss

__all__ = ["CMSSLLoss", "SSIMLoss"]

#: Of the five scales of MS-SSIM, finest first: Wang, Simoncelli and Bovik 2003.
WANG = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


class WindowLoss(Loss):
    """A loss on the windows around every pixel; one to three spatial axes.

    Args:
        window: odd number of pixels along every axis, or one per axis.
        sigma: standard deviation of the Gaussian in pixels, or one per axis.
        kernel: ``"gaussian"`` or ``"box"``.
        padding: ``"zeros"`` centres a window on every pixel, with zeros outside the image; ``"valid"`` takes only the
            windows inside the image.

    A window belongs to its centre: it counts if that pixel is not ignored, with that pixel's weight. In the windows of
    its neighbours an ignored pixel is 0 in prediction and target alike, as the padding is; a pixel of weight 0 is as
    predicted, and so may have a gradient.
    """

    def __init__(
        self,
        *,
        window: int | Sequence[int],
        sigma: float | Sequence[float],
        kernel: Kernel,
        padding: Padding,
        **common: Unpack[Options],
    ) -> None:
        super().__init__(**common)
        self.window, self.sigma, self.kernel, self.padding = window, sigma, kernel, padding
        axes = max(len(v) if isinstance(v, list | tuple) else 1 for v in (window, sigma))
        make_window(window, sigma, kernel, padding, (0,) * axes)  # a wrong setting is found here

    own_pass = True
    op: str  # that runs it

    def path(self, x: Tensors, g: Geometry) -> tuple[str, bool]:
        """The backend, and whether its fused kernel takes this call."""
        window = self.window_for(g.spatial)
        module = local_moments.backend(x.input, window, self.op)
        name = module.__name__.split(".")[-2]
        fused = name != "reference" and local_moments.takes_fused(g, window)
        return name, fused and (self.op != "cmssl" or self.reduction != "none")

    def windowed(self, x: Tensors, g: Geometry) -> Tensor:
        """The loss, reduced, in float64 or in the type of computation."""
        raise NotImplementedError

    def compute(self, x: Tensors, g: Geometry, **more: Any) -> Tensor:
        return self.windowed(x, g)

    def window_for(self, spatial: tuple[int, ...]) -> Window:
        return make_window(self.window, self.sigma, self.kernel, self.padding, spatial)

    def first_class(self, g: Geometry) -> int:
        return int(self.leaves_out_background(g))

    def explanation(self, input: Tensor, target: Tensor) -> str:
        x, g = self.check(input, target, None, None)
        kernels, fused = self.path(x, g)
        how = "fused sweeps over the windows" if fused else "torch operations on local_moments"
        return f"mode {g.mode}, {g.activation}; {self.op} on {kernels}: {how}"

    def class_weights(self, g: Geometry, like: Tensor) -> tuple[Tensor, tuple[float, ...]] | tuple[None, None]:
        """``(C,)`` in float64 beside ``like``, and as numbers."""
        if self.class_weight is None:
            return None, None
        numbers = tuple(one_per_class(self.class_weight, g.shape[1]))
        return beside(numbers, like.device), numbers


class SSIMLoss(WindowLoss):
    """1 minus the mean structural similarity of prediction and target; one loss per (sample, class), then a mean.

    ``SSIM = (2 mp my + C1) (2 cov + C2) / ((mp^2 + my^2 + C1) (vp + vy + C2))`` with ``C = (k data_range)^2`` and the
    moments of a window.

    Args:
        window: odd number of pixels along every axis, or one per axis.
        sigma: standard deviation of the Gaussian in pixels, or one per axis.
        kernel: ``"gaussian"`` or ``"box"``.
        padding: ``"valid"`` takes only the windows inside the image; ``"zeros"`` one for every pixel.
        data_range: largest minus smallest possible value: 1 for probabilities.
        k1, k2: constants of luminance and contrast.
        scale_weights: exponents of MS-SSIM, finest scale first; ``"wang"`` is (0.0448, 0.2856, 0.3001, 0.2363, 0.1333).
            All scales but the last use the second factor alone. From one to the next, blocks of 2 pixels along every
            axis are averaged (an odd last one is left out); a block with an ignored pixel is ignored. A negative mean
            counts as 0. Default: one scale.

    See :class:`WindowLoss` for ignored pixels and weights: a group's value is a mean of its windows by weight.
    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861; Wang et al. 2003, doi:10.1109/ACSSC.2003.1292216 (scales).
    """

    op = "ssim"

    def __init__(
        self,
        *,
        window: int | Sequence[int] = 11,
        sigma: float | Sequence[float] = 1.5,
        kernel: Kernel = "gaussian",
        padding: Padding = "valid",
        data_range: float = 1.0,
        k1: float = 0.01,
        k2: float = 0.03,
        scale_weights: Sequence[float] | Literal["wang"] | None = None,
        **common: Unpack[Options],
    ) -> None:
        super().__init__(window=window, sigma=sigma, kernel=kernel, padding=padding, **common)
        self.data_range, self.k1, self.k2 = number("data_range", data_range), number("k1", k1), number("k2", k2)
        self.scale_weights = weights_tuple("scale_weights", scale_weights, ("wang",))

    def windowed(self, x: Tensors, g: Geometry) -> Tensor:
        first = self.first_class(g)
        if self.scale_weights is None:
            similarity, count = self.mean(x, g, first)
        else:
            similarity, count = self.over_scales(x, g, first)
        loss = torch.where(count == 0, 0, 1 - similarity)[:, first:]
        v, numbers = self.class_weights(g, loss)
        weighted = loss if v is None else v[first:] * loss
        if self.reduction == "none":
            return weighted
        if self.reduction == "sum":
            return weighted.sum()
        total = loss.shape[1] if numbers is None else math.fsum(numbers[first:])
        return weighted.sum() / (loss.shape[0] * total) if loss.shape[0] * total else weighted.sum()

    def mean(self, x: Tensors, g: Geometry, first: int, contrast: bool = False) -> tuple[Tensor, Tensor]:
        """Mean SSIM, or its second factor, of every group ``(N, C)``, and the sum of its weights."""
        c1, c2 = ((k * self.data_range) ** 2 for k in (self.k1, self.k2))
        total, count = ssim.sums(x, g, ssim.Ssim(self.window_for(g.spatial), c1, c2, contrast, first))
        return torch.where(count == 0, 1, total / torch.where(count == 0, 1, count)), count

    def over_scales(self, x: Tensors, g: Geometry, first: int) -> tuple[Tensor, Tensor]:
        weights = WANG if self.scale_weights == "wang" else self.scale_weights
        last = len(weights) - 1
        similarity, counted = self.mean(x, g, first, contrast=last > 0)
        product = _power(similarity, weights[0])
        if last:
            size = self.window if isinstance(self.window, int) else max(self.window)
            if self.padding == "valid" and any(0 < n >> last < size for n in g.spatial):
                raise ValueError(
                    f"with padding='valid' {last + 1} scales and a window of {size} pixels need {size << last} pixels "
                    f"along every axis; got an image {g.spatial}. Try: fewer scale_weights, or padding='zeros'"
                )
            levels = ssim.pyramid(x, g, last)
            for scale, (level, shape) in enumerate(levels, 1):
                product = product * _power(self.mean(level, shape, first, contrast=scale < last)[0], weights[scale])
        return product, counted


def _power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent, with value and gradient 0 for x <= 0; NaN stays."""
    return torch.where(x <= 0, 0, torch.where(x <= 0, 1, x) ** exponent)


class CMSSLLoss(WindowLoss):
    """Cross-entropy of the pixels whose surroundings differ from those of the target, times that difference.

    With ``r(a) = (a - mean + C4) / (std + C4)`` in a window, ``std = sqrt(var + eps_var)``, ``e = |r(y) - r(p)|`` and
    ``f = 1`` where ``e > beta max e``: ``sum e f l / sum f`` over pixels and classes; l is the cross-entropy (softmax:
    ``-y_c log p_c`` of every class, so that classes which are absent count in ``sum f`` alone). 0 where no f is 1.

    Args:
        window: odd number of pixels along every axis, or one per axis.
        sigma: standard deviation of the Gaussian in pixels, or one per axis.
        kernel: ``"gaussian"`` or ``"box"``.
        padding: ``"zeros"`` or ``"valid"``; a pixel without a window does not count.
        C4: keeps r finite where a window is flat.
        eps_var: added to a variance, keeps the gradient of its root finite.
        beta: share of the largest e below which a pixel is left out.
        e_max_scope: what the largest e is taken over: ``"batch"`` (all samples and classes), ``"sample"``, or
            ``"class"`` (of the whole batch).
        threshold: e below which a pixel is left out, instead of ``beta max e``.
        detach_e: e is a weight without a gradient.
        lambda_ce: share of plain cross-entropy: ``lambda_ce CE + (1 - lambda_ce) CMSSL``; the authors train with 0.5.
        activation: ``"sigmoid"`` treats a multiclass target as one sigmoid per class.

    ``weight_map`` and ``class_weight`` multiply a pixel's part of the numerator. See :class:`WindowLoss` for ignored
    pixels. ``reduction="none"`` gives ``e f l`` of every pixel, ``"sum"`` their sum.
    An infinite cross-entropy (a logit of -inf at the target class) passes no gradient through e.
    Source: Zhao et al. 2019 (arXiv 1910.08711); Jadon II-N.
    """

    op = "cmssl"

    def __init__(
        self,
        *,
        window: int | Sequence[int] = 3,
        sigma: float | Sequence[float] = 1.5,
        kernel: Kernel = "gaussian",
        padding: Padding = "zeros",
        C4: float = 0.01,
        eps_var: float = 1e-12,
        beta: float = 0.1,
        e_max_scope: Literal["batch", "sample", "class"] = "batch",
        threshold: float | None = None,
        detach_e: bool = False,
        lambda_ce: float = 0.0,
        activation: Literal["auto", "sigmoid", "softmax"] = "auto",
        **common: Unpack[Options],
    ) -> None:
        super().__init__(window=window, sigma=sigma, kernel=kernel, padding=padding, **common)
        self.C4, self.eps_var = number("C4", C4), number("eps_var", eps_var)
        self.beta = number("beta", beta, 0, 1)
        self.e_max_scope = one_of("e_max_scope", e_max_scope, ("batch", "sample", "class"))
        self.threshold = None if threshold is None else number("threshold", threshold)
        self.detach_e, self.lambda_ce = bool(detach_e), number("lambda_ce", lambda_ce, 0, 1)
        self.activation = one_of("activation", activation, ("auto", "sigmoid", "softmax"))

    @property
    def one_vs_rest(self) -> bool:
        return self.activation == "sigmoid"

    def unreduced_shape(self, g: Geometry) -> tuple[int, ...]:
        return g.map_shape

    def compute(self, x: Tensors, g: Geometry, **more: Any) -> Tensor:
        structure = self.windowed(x, g)
        if not self.lambda_ce:
            return structure
        entropy = self.cross_entropy()(x.input, x.target, weight_map=x.weight, mask=x.mask)
        return self.lambda_ce * entropy + (1 - self.lambda_ce) * structure.to(entropy.dtype)

    def windowed(self, x: Tensors, g: Geometry) -> Tensor:
        fixed = self.threshold is not None
        settings = cmssl.Cmssl(
            window=self.window_for(g.spatial),
            c4=self.C4,
            variance_eps=self.eps_var,
            cut=self.threshold if self.threshold is not None else self.beta,
            scope="fixed" if fixed else self.e_max_scope,
            detach=self.detach_e,
            first_class=self.first_class(g),
        )
        v, _ = self.class_weights(g, x.input)
        if self.reduction == "none":
            return cmssl.loss_map(x, g, settings, v)
        total, selected = cmssl.sums(x, g, settings)
        value = (total if v is None else v * total).sum()
        if self.reduction == "sum":
            return value
        count = selected.sum()
        return torch.where(count == 0, 0, value / torch.where(count == 0, 1, count))

    _entropy: tuple[Any, Any] = (None, None)  # for which state, the loss

    def cross_entropy(self) -> Loss:
        """With the options of this loss."""
        if self._entropy[0] != self._state():
            options: Options = {
                "mode": self.mode,
                "from_logits": self.from_logits,
                "reduction": self.reduction,
                "ignore_index": self.ignore_index,
                "class_weight": self.class_weight,
                "include_background": self.include_background,
            }
            loss: Loss = (
                FocalLoss(alpha=None, gamma=0.0, activation="sigmoid", **options)
                if self.one_vs_rest
                else CrossEntropyLoss(**options)
            )
            self.__dict__["_entropy"] = (self._state(), loss)
        return self._entropy[1]
