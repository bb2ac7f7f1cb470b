"""T-Loss: a Student-t likelihood that doubts noisy labels."""

from __future__ import annotations

import math

import torch
from torch import nn
from typing_extensions import Unpack

from ..ops.formula import Array, PixelStats, mean
from ._base import Loss, Options, number

__all__ = ["TLoss"]


class TLoss(Loss):
    """Negative log-likelihood of every image's errors under a Student-t distribution with learnable degrees of freedom.

    Args:
        nu_tilde: initial value of the parameter; nu = exp(nu_tilde) + eps. Give ``loss.parameters()`` to the optimizer
            too.
        lam: log-precision of a pixel's error (the authors' code has 1, the paper 0).
        eps: least nu.

    Errors of all channels of an image count together. Source: Gonzalez-Jimenez et al. 2023 (arXiv 2306.00753).
    """

    def __init__(
        self, *, nu_tilde: float = 1.0, lam: float = 0.0, eps: float = 1e-8, **common: Unpack[Options]
    ) -> None:
        super().__init__(**common)
        self.nu_tilde = nn.Parameter(torch.tensor(float(nu_tilde)))
        self.lam, self.eps = number("lam", lam, -1e3), number("eps", eps)

    def value(self, s: PixelStats) -> Array:
        v = self.weights(s)
        nu = s.parameter(self.nu_tilde).exp() + self.eps
        s = self.foreground(s)
        valid = s.count.sum(1, keepdim=True)
        squares = s.sq_true + s.sq_false
        error = math.exp(self.lam) * (squares if v is None else v * squares).sum(1, keepdim=True)
        half = (nu + valid) * 0.5
        loss = (
            (nu * 0.5).lgamma()
            - half.lgamma()
            + 0.5 * valid * ((math.pi * nu).log() - self.lam)
            + half * (error / nu).log1p()
        )
        if self.reduction == "none":
            return loss
        return loss.sum() if self.reduction == "sum" else mean(loss)
