"""Forward and derivative of a definition written as sums of a pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...ops._hard_pair import HardPair


def refuses(input: Tensor, device: str | None = None) -> str | None:
    return None


def with_derivative(
    pair: HardPair, with_gradient: bool, sums: Callable[[HardPair], Tensor]
) -> tuple[Tensor, Tensor | None]:
    """The groups' sums, and the derivative by p of each."""
    if not with_gradient:
        return sums(pair), None
    with torch.enable_grad():
        p = pair.p.detach().requires_grad_()
        found = sums(replace(pair, p=p))
        return found.detach(), torch.autograd.grad(found.sum(), p)[0]
