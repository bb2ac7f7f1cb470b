"""A whole loss on the CPU: one call forward, pass and formula, and one call backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpp
from ...ops.formula import Call
from ...ops.pixel_stats import Tensors
from .pixel_stats import empty_gradient, pointers
from .pixel_stats import layout as describe_layout
from .pixel_stats import refuses as refuses

AHEAD = True  # a pass can write the gradient of a linear formula while it reads


def _native(call: Call, x: Tensors) -> tuple[_cpp.Pass, _cpp.Code]:
    """Layout and code, made once for each kind of tensors that a loss meets. A gradient is laid out like the logits."""
    if call.native is None:
        own = describe_layout(x, call.geometry, call.formula.plan, torch.empty_like(x.input))
        call.native = own, _cpp.Code(**call.formula.instructions)
    return call.native


def fits(call: Call, x: Tensors) -> bool:
    return True


def forward(
    call: Call, x: Tensors, parameters: Tensor | None, terms: Tensor | None, ahead: bool
) -> tuple[Tensor, int, Tensor, Tensor | None]:
    """The value in its own shape, the number of targets or weights out of range, the sums and, if asked, a gradient."""
    f = call.formula
    value = torch.empty(call.value_shape, dtype=call.dtype, device="cpu")
    sums = torch.empty((f.plan.rows * (2 if ahead else 1), *call.geometry.shape[:2]), dtype=torch.float64, device="cpu")
    grad = empty_gradient(x.input) if ahead else None
    layout, code = _native(call, x)
    invalid = _cpp.formula_forward(
        layout=layout,
        code=code,
        inputs=pointers(x),
        sums=sums.data_ptr(),
        parameters=0 if parameters is None else parameters.data_ptr(),
        grad_input=0 if grad is None else grad.data_ptr(),
        count_first=call.count_first,
        value=value.data_ptr(),
        value_is_double=call.dtype == torch.float64,
        terms=0 if terms is None else terms.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return value, invalid, sums, grad


def backward(
    call: Call, x: Tensors, parameters: Tensor | None, sums: Tensor, grad: Tensor, ahead: Tensor | None, wanted: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of the input, where wanted, and of the parameters. ``ahead`` is the gradient that forward wrote."""
    grad = grad.contiguous()
    parameter_grad = None if parameters is None else torch.empty_like(parameters)
    grad_input = (ahead if ahead is not None else empty_gradient(x.input)) if wanted else None
    layout, code = _native(call, x)
    factor = _cpp.formula_backward(
        layout=layout,
        code=code,
        inputs=pointers(x),
        sums=sums.data_ptr(),
        parameters=0 if parameters is None else parameters.data_ptr(),
        grad_input=0 if grad_input is None else grad_input.data_ptr(),
        ahead=sums.shape[0] > call.formula.plan.rows,
        written=ahead is not None,
        grad=grad.data_ptr(),
        grad_is_double=call.dtype == torch.float64,
        parameter_grad=0 if parameter_grad is None else parameter_grad.data_ptr(),
        n_parameters=0 if parameters is None else parameters.numel(),
        threads=torch.get_num_threads(),
    )
    if factor != 1.0 and grad_input is not None:
        grad_input.mul_(factor)
    return grad_input, parameter_grad
