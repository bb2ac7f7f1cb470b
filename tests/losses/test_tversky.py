"""Tversky and focal Tversky."""

from __future__ import annotations

import math

import pytest
import torch

import segfuse as sf
from all_losses import problem
from by_hand import FN, FP, TP, P, Y, slope
from compare import close, evaluate

EXACT = {"from_logits": False}


def test_by_hand(backend):
    """alpha prices a false positive, beta a false negative."""
    loss = sf.TverskyLoss(alpha=0.1, beta=0.9, smooth=(0.2, 0.5), **EXACT)
    close(loss(P, Y), 1 - (TP + 0.2) / (TP + 0.1 * FP + 0.9 * FN + 0.5), 1e-14)
    swapped = sf.TverskyLoss(alpha=0.9, beta=0.1, smooth=(0.2, 0.5), **EXACT)
    close(swapped(P, Y), 1 - (TP + 0.2) / (TP + 0.9 * FP + 0.1 * FN + 0.5), 1e-14)


def test_gradient_by_hand(backend):
    a, b = TP + 0.2, TP + 0.1 * FP + 0.9 * FN + 0.5
    by_overlap, by_size = -1 / b + a * (1 - 0.1 - 0.9) / b**2, 0.1 * a / b**2
    expected = torch.tensor([[[1.0, 0, 1, 0]]], dtype=torch.float64) * by_overlap + by_size
    close(slope(sf.TverskyLoss(alpha=0.1, beta=0.9, smooth=(0.2, 0.5), **EXACT)), expected, 1e-13)


def test_false_positives_and_false_negatives_are_told_apart(backend):
    only_fp = torch.tensor([[[1.0, 0.5, 0.0, 0.0]]])
    only_fn = torch.tensor([[[0.5, 0.0, 0.0, 0.0]]])
    y = torch.tensor([[[1, 0, 0, 0]]])
    loss = sf.TverskyLoss(alpha=0.1, beta=0.9, smooth=0.0, **EXACT)
    close(loss(only_fp, y), 1 - 1 / 1.05, 1e-6)
    close(loss(only_fn, y), 1 - 0.5 / 0.95, 1e-6)


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_special_cases(backend, mode):
    """Half and half is Dice with twice the smoothing; one and one is Jaccard."""
    x, y = problem(mode)
    pairs = [
        (sf.TverskyLoss(alpha=0.5, beta=0.5, smooth=0.7, mode=mode), sf.DiceLoss(smooth=1.4, mode=mode)),
        (sf.TverskyLoss(alpha=1.0, beta=1.0, smooth=0.7, mode=mode), sf.JaccardLoss(smooth=0.7, mode=mode)),
        (
            sf.FocalTverskyLoss(alpha=0.1, beta=0.9, gamma=1.0, mode=mode),
            sf.TverskyLoss(alpha=0.1, beta=0.9, mode=mode),
        ),
    ]
    for one, other in pairs:
        for a, b in zip(evaluate(one, x, y), evaluate(other, x, y)):
            close(a, b, 1e-12)


def test_defaults(backend):
    close(sf.TverskyLoss(**EXACT)(P, Y), 1 - (TP + 1) / (TP + 0.3 * FP + 0.7 * FN + 1), 1e-14)
    focal = (1 - (TP + 1) / (TP + 0.3 * FP + 0.7 * FN + 1)) ** 0.75
    close(sf.FocalTverskyLoss(**EXACT)(P, Y), focal, 1e-14)


# ------------------------------------------------------------------------------------------- focal


def test_gamma_is_the_exponent(backend):
    """Of every group, before the mean, or of the mean."""
    p, y = torch.cat([P, 1 - P]), torch.cat([Y, Y])
    settings = {"alpha": 0.1, "beta": 0.9, "smooth": 0.5, **EXACT}
    one = 1 - (TP + 0.5) / (TP + 0.1 * FP + 0.9 * FN + 0.5)
    two = 1 - (FN + 0.5) / (FN + 0.1 * 1.3 + 0.9 * TP + 0.5)
    for gamma in (0.75, 4 / 3):
        close(sf.FocalTverskyLoss(gamma=gamma, **settings)(p, y), (one**gamma + two**gamma) / 2, 1e-13)
        after = sf.FocalTverskyLoss(gamma=gamma, power="after_mean", **settings)
        close(after(p, y), ((one + two) / 2) ** gamma, 1e-13)


def test_gradient_at_a_perfect_prediction(backend):
    """Infinite by the formula for gamma < 1; the slope at 1e-7 is taken."""
    p, y = torch.tensor([[[1.0, 0.0, 1.0]]], dtype=torch.float64), torch.tensor([[[1, 0, 1]]])
    value, grad = evaluate(sf.FocalTverskyLoss(gamma=0.75, **EXACT), p, y)
    plain = evaluate(sf.TverskyLoss(**EXACT), p, y)[1]
    assert value == 0
    close(grad, 0.75 * 1e-7**-0.25 * plain, 1e-9)
    value, grad = evaluate(sf.FocalTverskyLoss(gamma=1.5, **EXACT), p, y)
    assert value == 0 and not grad.any()


@pytest.mark.parametrize(
    ("dtype", "z", "rounding"), [(torch.float32, 9.0, 1e-6), (torch.float64, 25.0, 1e-14)], ids=str
)
def test_nearly_perfect_predictions(backend, dtype, z, rounding):
    """fp and fn are differences of sums: as exact as the sums, whose largest is the number of pixels."""
    x = torch.full((1, 1, 1000), z, dtype=dtype)
    wrong = 1000 / (1 + math.exp(z))
    expected = 0.7 * wrong / (1000 - wrong + 0.7 * wrong + 1)
    value = float(sf.TverskyLoss()(x, torch.ones(1, 1, 1000)))
    assert value > 0
    assert abs(value - expected) <= rounding
