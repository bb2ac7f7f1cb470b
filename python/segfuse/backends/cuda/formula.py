"""A whole loss on a GPU: forward the pass and one launch for the formula, backward the formula and the pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import _cuda
from ...ops.formula import Call
from ...ops.pixel_stats import Tensors
from .._layout import pointers
from ._device import refuses as refuses
from ._device import where, workspace
from .pixel_stats import invalid, layout

AHEAD = False  # the factor of the gradient is known on the device alone


class Native(NamedTuple):
    """What is made once for each kind of tensors that a loss meets."""

    layout: _cuda.Pass
    tables: tuple[Tensor, Tensor, Tensor]  # code, constants, outputs; on the device
    code: tuple[int, int, int, int, int, int, int]  # their addresses and lengths, and the entries of all arrays
    pass_room: int  # bytes
    formula_room: int


def _addresses(a: Tensor, b: Tensor, c: Tensor) -> tuple[int, int, int]:
    return a.data_ptr(), b.data_ptr(), c.data_ptr()


def _native(call: Call, x: Tensors) -> Native:
    if call.native is None:
        g, f = call.geometry, call.formula
        code, constants, outputs = f.instructions.values()
        laid, total = _cuda.formula_layout(code=code, N=g.shape[0], C=g.shape[1])
        device = x.input.device
        tables = (
            torch.tensor(laid, dtype=torch.int32, device=device),
            torch.tensor(constants, dtype=torch.float64, device=device),
            torch.tensor(outputs, dtype=torch.int32, device=device),
        )
        own = layout(x, g, f.plan, torch.empty_like(x.input))
        call.native = Native(
            own,
            tables,
            (*_addresses(*tables), len(laid) // 6, len(constants), len(outputs), total),
            _cuda.pixel_stats_workspace(layout=own),
            2 * 8 * total,
        )
    return call.native


def fits(call: Call, x: Tensors) -> bool:
    """The pass has room for its classes. ``x`` may still lack what is measured."""
    return _cuda.pixel_stats_workspace(layout=layout(x, call.geometry, call.formula.plan)) >= 0


def forward(
    call: Call, x: Tensors, parameters: Tensor | None, terms: Tensor | None, ahead: bool
) -> tuple[Tensor, int, Tensor, Tensor | None]:
    """The value in its own shape, the number of targets or weights out of range, the sums, and no gradient."""
    native, here = _native(call, x), where(x.input)
    value = torch.empty(call.value_shape, dtype=call.dtype, device=x.input.device)
    sums = torch.empty((call.formula.plan.rows, *call.geometry.shape[:2]), dtype=torch.float64, device=x.input.device)
    room = workspace(max(native.pass_room, native.formula_room), x.input)
    _cuda.pixel_stats_forward(
        where=here, layout=native.layout, inputs=pointers(x), sums=sums.data_ptr(), workspace=room.data_ptr()
    )
    _cuda.formula_forward(
        where=here,
        layout=native.layout,
        code=native.code,
        sums=sums.data_ptr(),
        parameters=0 if parameters is None else parameters.data_ptr(),
        workspace=room.data_ptr(),
        value=value.data_ptr(),
        value_is_double=call.dtype == torch.float64,
        terms=0 if terms is None else terms.data_ptr(),
    )
    return value, invalid(x, call.geometry), sums, None


def backward(
    call: Call, x: Tensors, parameters: Tensor | None, sums: Tensor, grad: Tensor, ahead: Tensor | None, wanted: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of the input, where wanted, and of the parameters."""
    native, here, grad = _native(call, x), where(x.input), grad.contiguous()
    parameter_grad = None if parameters is None else torch.empty_like(parameters)
    coefficient, room = torch.empty_like(sums), workspace(native.formula_room, x.input)
    _cuda.formula_backward(
        where=here,
        layout=native.layout,
        code=native.code,
        sums=sums.data_ptr(),
        parameters=0 if parameters is None else parameters.data_ptr(),
        n_parameters=0 if parameters is None else parameters.numel(),
        workspace=room.data_ptr(),
        grad=grad.data_ptr(),
        grad_is_double=call.dtype == torch.float64,
        coefficient=coefficient.data_ptr(),
        parameter_grad=0 if parameter_grad is None else parameter_grad.data_ptr(),
    )
    if not wanted:
        return None, parameter_grad
    grad_input = torch.empty_like(x.input)
    _cuda.pixel_stats_backward(
        where=here,
        layout=native.layout,
        inputs=pointers(x),
        grad_input=grad_input.data_ptr(),
        upstream=0,
        coefficient=coefficient.data_ptr(),
    )
    return grad_input, parameter_grad
