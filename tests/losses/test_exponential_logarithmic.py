"""Exponential-logarithmic loss."""

from __future__ import annotations

import math

import pytest
import torch

import segfuse as sf
from all_losses import problem
from by_hand import TP, P, Y
from compare import close, evaluate

EXACT = {"from_logits": False}
LOG = [-math.log(v) for v in (0.8, 0.6, 0.1, 0.7)]


def test_by_hand(backend):
    """Each part has a weight and an exponent of its own."""
    loss = sf.ExponentialLogarithmicLoss(w_dice=0.3, w_cross=0.6, gamma_dice=0.7, gamma_cross=1.2, smooth=0.5, **EXACT)
    dice = (2 * TP + 0.5) / (1.6 + 2 + 0.5)
    expected = 0.3 * (-math.log(dice)) ** 0.7 + 0.6 * sum(v**1.2 for v in LOG) / 4
    close(loss(P, Y), expected, 1e-13)


def test_power_of_every_group_before_the_mean(backend):
    x, y = problem("multiclass")
    loss = sf.ExponentialLogarithmicLoss(w_cross=0.0, w_dice=1.0, gamma_dice=0.4)
    dice = 1 - sf.DiceLoss(reduction="none")(x, y)
    close(loss(x, y), (-dice.log()).pow(0.4).mean(), 1e-13)


def test_class_weights(backend):
    """Of the label of each pixel, in the cross-entropy; the mean is over valid pixels."""
    x, y = problem("multiclass")
    a = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    loss = sf.ExponentialLogarithmicLoss(w_cross=1.0, w_dice=0.0, gamma_cross=0.4, class_weight=a)
    cross = torch.nn.functional.cross_entropy(x, y, reduction="none")
    close(loss(x, y), (a[y] * cross**0.4).mean(), 1e-13)


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_perfect_prediction_has_no_gradient(backend, mode, dtype):
    """Both powers are singular there; what they multiply is 0."""
    if mode == "binary":
        x, y = torch.tensor([[[torch.inf, -torch.inf, torch.inf]]], dtype=dtype), torch.tensor([[[1, 0, 1]]])
    else:
        x = torch.tensor([[[0.0, -torch.inf], [-torch.inf, 0.0]]], dtype=dtype)
        y = torch.tensor([[0, 1]])
    value, grad = evaluate(sf.ExponentialLogarithmicLoss(), x, y)
    assert value == 0 and not grad.any()


@pytest.mark.parametrize("target", ["index", "one_hot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_certain_pixels_have_a_bounded_gradient(backend, dtype, target):
    """The derivative of l^0.3 is huge where l is tiny, but (p - y) is as small: 0.3 l^0.3 remains."""
    for z in (5.0, 12.0, 25.0):
        x = torch.tensor([[[z], [0.0]]], dtype=dtype)
        y = torch.tensor([[0]])
        y = torch.nn.functional.one_hot(y, 2).movedim(-1, 1) if target == "one_hot" else y
        loss = sf.ExponentialLogarithmicLoss(w_dice=0.0, w_cross=1.0)
        entropy = math.log1p(math.exp(-z))
        slope = 0.3 * entropy**-0.7 / (1 + math.exp(z))
        value, grad = evaluate(loss, x, y)
        close(value, entropy**0.3, 1e-5)
        close(grad, torch.tensor([[[-slope], [slope]]]), 1e-5)


def test_the_worst_dice(backend):
    """Clamped: -log of 1e-6 at most."""
    p = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    loss = sf.ExponentialLogarithmicLoss(w_dice=1.0, w_cross=0.0, gamma_dice=0.5, smooth=0.0, **EXACT)
    value, grad = evaluate(loss, p, torch.tensor([[[1, 0]]]))
    close(value, math.sqrt(-math.log(1e-6)), 1e-9)
    assert grad.isfinite().all()
