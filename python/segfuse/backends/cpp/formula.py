"""A traced formula on the CPU: one call forward, one call backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops.formula import Formula
from ...ops.pixel_stats import Geometry
from .pixel_stats import refuses as refuses


def _call(f: Formula, g: Geometry, sums: Tensor, parameters: Tensor | None) -> dict[str, int]:
    code, constants, outputs = f.native
    return {
        "code": code.data_ptr(),
        "length": f.length,
        "constants": constants.data_ptr(),
        "outputs": outputs.data_ptr(),
        "n_outputs": len(f.outputs),
        "sums": sums.data_ptr(),
        "N": g.shape[0],
        "C": g.shape[1],
        "S": g.pixels,
        "parameters": 0 if parameters is None else parameters.data_ptr(),
    }


def forward(f: Formula, g: Geometry, sums: Tensor, parameters: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The value in its own shape and the terms ``(T,)``."""
    value = torch.empty(f.value_shape(g), dtype=dtype)
    terms = torch.empty(len(f.outputs) - 1, dtype=torch.float64)
    _cpp.formula_forward(
        **_call(f, g, sums, parameters), value=value.data_ptr(), value_is_double=dtype == torch.float64, terms=terms.data_ptr()
    )
    return value, terms


def backward(f: Formula, g: Geometry, sums: Tensor, parameters: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """The derivative by every sum ``(K, N, C)`` and by every parameter."""
    coefficient = torch.empty_like(sums)
    parameter_grad = None if parameters is None else torch.empty_like(parameters)
    grad = grad.contiguous()
    _cpp.formula_backward(
        **_call(f, g, sums, parameters),
        grad=grad.data_ptr(),
        grad_is_double=grad.dtype == torch.float64,
        coefficient=coefficient.data_ptr(),
        rows=sums.shape[0],
        parameter_grad=0 if parameter_grad is None else parameter_grad.data_ptr(),
        n_parameters=0 if parameters is None else parameters.numel(),
    )
    return coefficient, parameter_grad


def ratio(a: Tensor, b: Tensor) -> float:
    """The number r with ``a == r * b`` everywhere, NaN when there is none."""
    return _cpp.formula_ratio(a=a.data_ptr(), b=b.data_ptr(), length=a.numel())
