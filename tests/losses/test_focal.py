"""Focal loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import segfuse as sf
from all_losses import problem
from by_hand import P, Y
from compare import close, evaluate


def test_binary_by_hand(backend):
    """alpha belongs to the positives, gamma to the probability of being wrong."""
    loss = sf.FocalLoss(alpha=0.2, gamma=3.0, from_logits=False)
    expected = 0.2 * (0.2**3 * -math.log(0.8) + 0.9**3 * -math.log(0.1))
    expected += 0.8 * (0.4**3 * -math.log(0.6) + 0.3**3 * -math.log(0.7))
    close(loss(P, Y), expected / 4, 1e-13)


def test_default_alpha(backend):
    """0.25 for a sigmoid, none for a softmax."""
    x, y = problem("binary")
    close(sf.FocalLoss()(x, y), sf.FocalLoss(alpha=0.25)(x, y), 1e-14)
    x, y = problem("multiclass")
    close(sf.FocalLoss()(x, y), sf.FocalLoss(alpha=None)(x, y), 1e-14)
    close(sf.FocalLoss(activation="sigmoid")(x, y), sf.FocalLoss(alpha=0.25, activation="sigmoid")(x, y), 1e-14)


def test_multiclass_by_hand(backend):
    p = torch.tensor([[[0.7, 0.2], [0.2, 0.3], [0.1, 0.5]]], dtype=torch.float64)
    y = torch.tensor([[1, 2]])
    one, two = 0.8**1.5 * -math.log(0.2), 0.5**1.5 * -math.log(0.5)
    close(sf.FocalLoss(gamma=1.5)(p.log(), y), (one + two) / 2, 1e-14)
    close(sf.FocalLoss(gamma=1.5, class_weight=[9.0, 3.0, 0.5])(p.log(), y), (3 * one + 0.5 * two) / 2, 1e-14)
    close(sf.FocalLoss(gamma=1.5, alpha=[9.0, 3.0, 0.5])(p.log(), y), (3 * one + 0.5 * two) / 2, 1e-14)
    y = torch.tensor([[0, 2]])
    zero = 0.3**1.5 * -math.log(0.7)
    close(sf.FocalLoss(gamma=1.5, alpha=0.2)(p.log(), y), (0.8 * zero + 0.2 * two) / 2, 1e-14)


def test_one_vs_rest_is_a_sigmoid_per_class(backend):
    """The mean is over pixels and classes."""
    x, y = problem("multiclass")
    y[0, 0, 0] = -100
    hot = torch.where(y[:, None] == -100, -100, F.one_hot(y.clamp(min=0), 3).movedim(-1, 1))
    loss = sf.FocalLoss(alpha=0.3, gamma=1.2, activation="sigmoid")
    expected = evaluate(sf.FocalLoss(alpha=0.3, gamma=1.2, mode="multilabel"), x, hot)
    for a, b in zip(evaluate(loss, x, y), expected):
        close(a, b, 1e-13)


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_gamma_0_is_cross_entropy(backend, mode):
    x, y = problem(mode)
    expected = evaluate(sf.CrossEntropyLoss(mode=mode), x, y)
    for a, b in zip(evaluate(sf.FocalLoss(alpha=None, gamma=0.0, mode=mode), x, y), expected):
        close(a, b, 1e-13)


def test_linear_in_soft_labels(backend):
    x, y = problem("binary", soft=True)
    loss = sf.FocalLoss(alpha=0.3, gamma=1.7, reduction="none")
    ones, zeros = loss(x, torch.ones_like(y)), loss(x, torch.zeros_like(y))
    close(loss(x, y), y * ones + (1 - y) * zeros, 1e-13)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 1.7, 2.0, 5.0])
@pytest.mark.parametrize("z", [-100.0, -20.0, -3.0, 0.0, 3.0, 20.0, 100.0])
def test_any_gamma_at_any_logit(backend, gamma, z):
    """float32 against float64; a correct and certain pixel has a gradient, not NaN."""
    for x, y in (
        (torch.tensor([[[z]]]), torch.tensor([[[1]]])),
        (torch.tensor([[[z]]]), torch.tensor([[[0]]])),
        (torch.tensor([[[z], [0.0], [-1.0]]]), torch.tensor([[0]])),
    ):
        loss = sf.FocalLoss(alpha=None, gamma=gamma)
        value, grad = evaluate(loss, x, y)
        exact, exact_grad = evaluate(loss, x.double(), y)
        assert value.isfinite() and grad.isfinite().all()
        assert abs(value - exact) <= 1e-5 * abs(exact) + 1e-37
        assert ((grad - exact_grad).abs() <= 1e-5 * exact_grad.abs().max() + 1e-37).all()


def test_gradient_by_the_printed_formula(backend):
    x, y = problem("binary")
    a, g, p, t = 0.3, 1.4, torch.sigmoid(x), y.double()
    expected = -t * a * (1 - p) ** g * ((1 - p) - g * p * p.log())
    expected += (1 - t) * (1 - a) * p**g * (p - g * (1 - p) * (1 - p).log())
    grad = evaluate(sf.FocalLoss(alpha=a, gamma=g, reduction="sum"), x, y)[1]
    close(grad, expected, 1e-13)
