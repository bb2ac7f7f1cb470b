"""Sensitivity and specificity."""

from __future__ import annotations

import torch

import segfuse as sf
from by_hand import FN, FP, TN, TP, P, Y, slope
from compare import close, evaluate

EXACT = {"from_logits": False}


def test_ratio_by_hand(backend):
    """w belongs to the sensitivity."""
    expected = 1 - (0.8 * (TP + 0.5) / (2 + 0.5) + 0.2 * (TN + 0.5) / (2 + 0.5))
    close(sf.SensitivitySpecificityLoss(w=0.8, smooth=0.5, **EXACT)(P, Y), expected, 1e-14)
    expected = 1 - (0.8 * (TP + 0.2) / (2 + 0.5) + 0.2 * (TN + 0.2) / (2 + 0.5))
    close(sf.SensitivitySpecificityLoss(w=0.8, smooth=(0.2, 0.5), **EXACT)(P, Y), expected, 1e-14)


def test_ratio_gradient_by_hand(backend):
    """Where y is 1: -w / (Y + s); elsewhere (1 - w) / (N - Y + s)."""
    y = torch.tensor([[[1, 0, 1, 1]]])
    grad = slope(sf.SensitivitySpecificityLoss(w=0.8, smooth=0.5, **EXACT), y=y)
    close(grad, torch.tensor([[[-0.8 / 3.5, 0.2 / 1.5, -0.8 / 3.5, -0.8 / 3.5]]], dtype=torch.float64), 1e-13)


def test_brosch_by_hand(backend):
    """r belongs to the positives."""
    missed, invented = 0.2**2 + 0.9**2, 0.4**2 + 0.3**2
    expected = 0.3 * missed / 2.1 + 0.7 * invented / 2.1
    close(sf.SensitivitySpecificityLoss(form="brosch", r=0.3, eps=0.1, **EXACT)(P, Y), expected, 1e-14)
    grad = slope(sf.SensitivitySpecificityLoss(form="brosch", r=0.3, eps=0.1, **EXACT))
    expected = torch.tensor([[[-0.3 * 0.4, 0.7 * 0.8, -0.3 * 1.8, 0.7 * 0.6]]], dtype=torch.float64) / 2.1
    close(grad, expected, 1e-13)


def test_empty_and_full_targets(backend):
    zeros, ones = torch.zeros_like(Y), torch.ones_like(Y)
    total = float(P.sum())
    ratio = sf.SensitivitySpecificityLoss(w=0.8, smooth=0.5, **EXACT)
    close(ratio(P, zeros), 0.2 * total / 4.5, 1e-14)
    close(ratio(P, ones), 0.8 * (4 - total) / 4.5, 1e-14)
    brosch = sf.SensitivitySpecificityLoss(form="brosch", r=0.3, **EXACT)
    close(brosch(P, zeros), 0.7 * 0.9 / (4 + 1e-5), 1e-14)
    close(brosch(P, ones), 0.3 * (0.04 + 0.36 + 0.81 + 0.49) / (4 + 1e-5), 1e-14)


def test_it_is_a_loss_not_a_similarity(backend):
    """Better predictions cost less."""
    for form in ("ratio", "brosch"):
        loss = sf.SensitivitySpecificityLoss(form=form, **EXACT)
        good = torch.tensor([[[0.9, 0.1, 0.9, 0.1]]], dtype=torch.float64)
        assert loss(good, Y) < loss(P, Y) < loss(1 - good, Y)
        step = P - 0.01 * slope(loss)
        assert loss(step, Y) < loss(P, Y)
    assert TP + FN == 2 and FP + TN == 2


def test_brosch_has_no_cancellation(backend):
    """Few positives in float32, with a small eps: the squared errors are summed, not subtracted."""
    x = torch.full((1, 1, 5000), -4.0)
    x[..., 0] = 9.0
    y = torch.zeros(1, 1, 5000, dtype=torch.long)
    y[..., 0] = 1
    loss = sf.SensitivitySpecificityLoss(form="brosch", r=0.99)
    exact, exact_grad = evaluate(loss, x.double(), y)
    value, grad = evaluate(loss, x, y)
    close(value, exact, 1e-5)
    close(grad, exact_grad, 1e-3)
