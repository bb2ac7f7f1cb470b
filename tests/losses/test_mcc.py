"""Matthews correlation coefficient."""

from __future__ import annotations

import math

import torch

import segfuse as sf
from all_losses import problem
from by_hand import FN, FP, TN, TP, P, Y
from compare import close, evaluate

EXACT = {"from_logits": False}


def test_by_hand(backend):
    numerator = TP * TN - FP * FN
    root = math.sqrt((TP + FP) * (TP + FN) * (TN + FP) * (TN + FN))
    close(sf.MCCLoss(eps=0.0, **EXACT)(P, Y), 1 - numerator / root, 1e-13)
    with_eps = math.sqrt((TP + FP) * (TP + FN) * (TN + FP) * (TN + FN) / 4**4 + 0.01)
    close(sf.MCCLoss(eps=0.01, **EXACT)(P, Y), 1 - numerator / 4**2 / with_eps, 1e-13)


def test_perfect_and_inverse_predictions(backend):
    y = torch.tensor([[[1, 0, 1, 1]]])
    p = y.double()
    value = sf.MCCLoss(**EXACT)(p, y)
    assert 0 < value < 1e-10
    assert sf.MCCLoss(perfect="zero", **EXACT)(p, y) == 0
    close(sf.MCCLoss(**EXACT)(1 - p, y), 2.0, 1e-10)
    assert sf.MCCLoss(perfect="zero", **EXACT)(1 - p, y) > 1.99


def test_no_correlation_without_two_classes(backend):
    """Empty or full targets: loss 1, gradient 0."""
    x, _ = problem("binary")
    for fill in (0, 1):
        value, grad = evaluate(sf.MCCLoss(), x, torch.full(x.shape, fill))
        close(value, 1.0, 1e-9)
        assert float(grad.abs().max()) < 1e-8


def test_one_sided_predictions(backend):
    """All 0 or all 1: no correlation; no NaN."""
    for fill in (0.0, 1.0):
        value, grad = evaluate(sf.MCCLoss(**EXACT), torch.full((1, 1, 4), fill).double(), Y)
        close(value, 1.0, 1e-9)
        assert grad.isfinite().all()


def test_scale_free(backend):
    """Twice the pixels, the same loss; also where a product of four counts would leave float32."""
    x, y = problem("binary", dtype=torch.float32)
    value = evaluate(sf.MCCLoss(), x, y)[0]
    many = evaluate(sf.MCCLoss(), x.repeat(1, 1, 40, 50), y.repeat(1, 1, 40, 50))[0]
    close(many, value.double(), 1e-5)


def test_a_class_that_fills_its_sample_in_float32(backend):
    """Loss 1 and gradient 0, whatever rounding makes of weighted sums that are equal."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, 8, 3, generator=random)
    weight = torch.rand(3, 8, 3, generator=random)
    value, grad = evaluate(sf.MCCLoss(), x, torch.ones(3, 8, 3, dtype=torch.long), weight_map=weight)
    assert value == 1 and not grad.any()
