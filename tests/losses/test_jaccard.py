"""Jaccard."""

from __future__ import annotations

import torch

import segfuse as sf
from all_losses import problem
from by_hand import FN, FP, TP, P, Y, slope
from compare import close, evaluate

EXACT = {"from_logits": False}


def test_by_hand(backend):
    close(sf.JaccardLoss(smooth=(0.1, 0.5), **EXACT)(P, Y), 1 - (TP + 0.1) / (TP + FP + FN + 0.5), 1e-14)
    close(sf.JaccardLoss(**EXACT)(P, Y), 1 - 1.9 / 3.7, 1e-14)


def test_gradient_by_hand(backend):
    a, b = TP + 0.1, TP + FP + FN + 0.5
    expected = torch.tensor([[[1.0, 0, 1, 0]]], dtype=torch.float64) * (-1 / b - a / b**2) + a / b**2
    close(slope(sf.JaccardLoss(smooth=(0.1, 0.5), **EXACT)), expected, 1e-13)


def test_squares_by_hand(backend):
    expected = 1 - (TP + 0.5) / (0.64 + 0.16 + 0.01 + 0.09 + 2 - TP + 0.5)
    close(sf.JaccardLoss(squared=True, smooth=0.5, **EXACT)(P, Y), expected, 1e-14)


def test_follows_from_dice(backend):
    """J = D / (2 - D) without smoothing."""
    x, y = problem("multiclass")
    dice = 1 - sf.DiceLoss(smooth=0.0, reduction="none")(x, y)
    close(sf.JaccardLoss(smooth=0.0, reduction="none")(x, y), 1 - dice / (2 - dice), 1e-13)


def test_nothing_against_nothing_is_0(backend):
    value, grad = evaluate(sf.JaccardLoss(smooth=0.0, **EXACT), torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
    assert value == 0 and not grad.any()
