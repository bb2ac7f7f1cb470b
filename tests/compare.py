"""How results are compared: against known numbers, and against the reference by what rounding alone costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: times the largest entry
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}


def evaluate(loss: Any, x: Tensor, y: Tensor, **call: Any) -> tuple[Tensor, Tensor]:
    """The value of a loss and the gradient of its sum; neither input may change."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    before = x.detach().clone(), y.clone()
    value = loss(x, y, **call)
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert same(x.detach(), before[0]) and same(y, before[1])
    return value.detach(), grad


def close(found: Tensor, expected: Tensor | float, tolerance: float) -> None:
    """Equal to ``tolerance`` times the largest expected entry."""
    found, expected = found.detach().double(), torch.as_tensor(expected, dtype=torch.float64).detach()
    assert found.shape == expected.shape, f"{tuple(found.shape)} is not {tuple(expected.shape)}"
    if expected.numel():
        largest = float(expected.abs().max())
        error = float((found - expected).abs().max())
        assert error <= tolerance * largest, f"off by {error:.3g}, largest entry {largest:.6g}"


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN equal to NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def max_diff(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where one of them is NaN or infinite and the other is not the same."""
    a, b = a.double(), b.double()
    equal = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(equal, 0, (a - b).abs()).nan_to_num(nan=torch.inf)
    return float(difference.max()) if difference.numel() else 0.0


def largest(x: Tensor) -> float:
    finite = x[x.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def within_rounding(fast: Tensor, plain: Tensor, exact: Tensor, dtype: torch.dtype, what: str = "") -> None:
    """A kernel may err by twice what rounding alone costs, and no more."""
    assert fast.shape == exact.shape, f"{what}: {tuple(fast.shape)} is not {tuple(exact.shape)}"
    error, allowed = max_diff(fast, exact), 2 * max_diff(plain, exact) + FLOOR[dtype] * largest(exact)
    assert error <= allowed, f"{what}: off by {error:.3g}, allowed {allowed:.3g}, largest entry {largest(exact):.6g}"
