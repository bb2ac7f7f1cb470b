"""Unified focal loss."""

from __future__ import annotations

import math

import pytest
import torch

import segfuse as sf
from all_losses import problem
from by_hand import FN, FP, TN, TP, P, Y
from compare import close, evaluate

EXACT = {"from_logits": False}


@pytest.mark.parametrize("asymmetric", [True, False])
def test_binary_by_hand(backend, asymmetric):
    lam, delta, gamma, eps = 0.3, 0.7, 0.2, 0.01
    background = (1 - delta) * sum(p**gamma * -math.log(1 - p) for p in (0.4, 0.3))
    front = delta * sum((1 if asymmetric else (1 - p) ** gamma) * -math.log(p) for p in (0.8, 0.1))
    focal = (background + front) / 4
    zero = 1 - (TN + eps) / (TN + delta * FP + (1 - delta) * FN + eps)
    one = 1 - (TP + eps) / (TP + delta * FN + (1 - delta) * FP + eps)
    tversky = ((zero if asymmetric else zero ** (1 - gamma)) + one ** (1 - gamma)) / 2
    loss = sf.UnifiedFocalLoss(lam=lam, delta=delta, gamma=gamma, asymmetric=asymmetric, smooth=eps, **EXACT)
    close(loss(P, Y), lam * focal + (1 - lam) * tversky, 1e-13)


@pytest.mark.parametrize("asymmetric", [True, False])
def test_binary_is_two_classes(backend, asymmetric):
    """A sigmoid is a softmax of the logits 0 and z."""
    x, y = problem("binary")
    settings = {"lam": 0.3, "delta": 0.7, "gamma": 0.2, "asymmetric": asymmetric}
    one = evaluate(sf.UnifiedFocalLoss(**settings), x, y)
    two = evaluate(sf.UnifiedFocalLoss(**settings), torch.cat([torch.zeros_like(x), x], 1), y[:, 0])
    close(one[0], two[0], 1e-13)
    close(one[1], two[1][:, 1:], 1e-12)


def test_more_classes(backend):
    """Class 0 is background, every other one foreground."""
    x, y = problem("multiclass")
    lam, delta, gamma = 0.3, 0.7, 0.2
    p, hot = torch.softmax(x, 1), torch.nn.functional.one_hot(y, 3).movedim(-1, 1)
    log = -(hot * p.log())
    focal = (1 - delta) * (1 - p[:, 0]) ** gamma * log[:, 0] + delta * (log[:, 1] + log[:, 2])
    tp, size, true = ((v).sum((2, 3)) for v in (p * hot, p, hot.double()))
    index = (tp + 1e-7) / (tp + delta * (true - tp) + (1 - delta) * (size - tp) + 1e-7)
    tversky = torch.cat([1 - index[:, :1], (1 - index[:, 1:]) ** (1 - gamma)], 1)
    expected = lam * focal.mean() + (1 - lam) * tversky.mean()
    close(sf.UnifiedFocalLoss(lam=lam, delta=delta, gamma=gamma)(x, y), expected, 1e-12)


def test_lambda_multiplies_the_focal_term(backend):
    x, y = problem("binary")
    value, terms = sf.UnifiedFocalLoss(lam=0.9)(x, y, return_terms=True)
    close(value, 0.9 * terms["focal"] + 0.1 * terms["focal_tversky"], 1e-13)
    close(sf.UnifiedFocalLoss(lam=1.0)(x, y), terms["focal"], 1e-13)
    close(sf.UnifiedFocalLoss(lam=0.0)(x, y), terms["focal_tversky"], 1e-13)
