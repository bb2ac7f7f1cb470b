"""What holds for every loss with a peer's name: layouts, dtypes, NaN, empty batches, derivatives, backends."""

from __future__ import annotations

import importlib
import inspect

import pytest
import test_recorded as recorded
import torch
from test_recorded import TABLE

import segfuse

pytestmark = pytest.mark.filterwarnings("ignore")

every = pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")


def build(row):
    """The loss, fresh logits and the target."""
    module, name, options, x, y, _, _ = row
    function = getattr(importlib.import_module(f"segfuse.compat.{module}"), name)
    options = {k: dict(v) if isinstance(v, dict) else v for k, v in options.items()}
    loss = function(**options) if inspect.isclass(function) else lambda x, y: function(x, y, **options)
    return loss, getattr(recorded, x)(), getattr(recorded, y)()


def run(loss, x, y):
    x = x.clone().requires_grad_() if x.is_leaf else x
    value = loss(x, y)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


@every
def test_layouts(row):
    loss, x, y = build(row)
    value, grad = run(loss, x, y)
    wide = torch.zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype)
    wide[..., ::2] = x
    for z in (x.contiguous(memory_format=torch.channels_last), wide[..., ::2]):
        z = z.detach().requires_grad_()
        found = loss(z, y.transpose(-1, -2).contiguous().transpose(-1, -2))
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(found, z)[0], grad, rtol=1e-9, atol=1e-12)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(row, dtype):
    loss, x, y = build(row)
    value, grad = run(loss, x.to(dtype), y)
    expected, slope = run(loss, x.to(dtype).double(), y)
    assert value.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(value.double(), expected.double(), rtol=1e-5, atol=1e-6)
    tol = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(grad.double(), slope, rtol=tol, atol=tol * float(slope.abs().max()))


@every
def test_reference(row):
    loss, x, y = build(row)
    value, grad = run(loss, x, y)
    with segfuse.use_backend("reference"):
        expected, slope = run(loss, x, y)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad, slope, rtol=1e-8, atol=1e-12)


@every
def test_a_nan_is_not_swallowed(row):
    loss, x, y = build(row)
    x[0, 0, 4, 5] = torch.nan
    assert loss(x, y).isnan()


@every
def test_nothing_is_changed(row):
    loss, x, y = build(row)
    before = x.clone(), y.clone()
    run(loss, x, y)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


@every
def test_empty_batch_and_one_pixel(row):
    loss, x, y = build(row)
    loss(x[:0], y[:0])  # NaN or 0, no crash
    if row[1] not in ("SSIMLoss",):
        assert loss(x[:1, :, :1, :1], y[..., :1, :1][:1]).isfinite()


@every
def test_derivatives(row):
    loss, x, y = build(row)
    x, y = x[:1, :, :3, :2].clone().requires_grad_(), y[:1, ..., :3, :2]
    if row[:2] != ("monai", "FocalLoss"):  # float32 in MONAI
        assert torch.autograd.gradcheck(lambda x: loss(x, y), x)
        assert torch.autograd.gradgradcheck(lambda x: loss(x, y), x)


@every
def test_labels_without_a_class(row):
    if row[4] not in ("with_channel", "labels"):
        return
    loss, x, y = build(row)
    y[0, ..., 2, 3] = 7
    with pytest.raises(ValueError, match=r"7|0 to 2"):
        loss(x, y)
