"""``torch.jit``: every class with a peer's name as one operator of a trace and of a script."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from test_recorded import TABLE
from test_shared import build, run

import segfuse
from segfuse.compat import kornia, lovasz
from segfuse.compat import torch as compat_torch

pytestmark = pytest.mark.filterwarnings("ignore")

CLASSES = [
    row for row in TABLE if inspect.isclass(getattr(importlib.import_module(f"segfuse.compat.{row[0]}"), row[1]))
]


@pytest.mark.parametrize("row", CLASSES, ids=lambda row: f"{row[0]}-{row[1]}")
def test_trace_and_script(row):
    loss, x, y = build(row)
    value, grad = run(loss, x, y)
    for graph in (torch.jit.trace(loss, (x.detach(), y)), torch.jit.script(loss)):
        found, slope = run(graph, x, y)
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(slope, grad)


X2, Y2 = torch.randn(2, 3, 8, 10), torch.randint(0, 3, (2, 8, 10))
FUNCTIONS = {
    "lovasz_hinge": lambda x, y: lovasz.lovasz_hinge(x[:, 0], (y > 0).float()),
    "lovasz_softmax": lambda x, y: lovasz.lovasz_softmax(x.softmax(1), y),
    "lovasz_hinge_loss": lambda x, y: kornia.lovasz_hinge_loss(x[:, :1], (y > 0).long()),
    "lovasz_softmax_loss": kornia.lovasz_softmax_loss,
    "focal_loss": lambda x, y: kornia.focal_loss(x, y, 0.5, 2.0, reduction="mean"),
    "cross_entropy": compat_torch.cross_entropy,
    "distance_transform_edt": lambda x, y: segfuse.distance_transform_edt(y > 0, spacing=(2.0, 1.0)),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions(function):
    """For other shapes too, with a gradient."""
    graph = torch.jit.trace(function, (X2[..., 1:], Y2[..., 1:]))
    x = X2.clone().requires_grad_()
    value = graph(x, Y2)
    torch.testing.assert_close(value.detach(), function(X2, Y2))
    if value.requires_grad:
        expected = torch.autograd.grad(function(x, Y2), x)
        torch.testing.assert_close(torch.autograd.grad(value, x), expected)
