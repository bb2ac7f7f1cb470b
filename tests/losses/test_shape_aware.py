"""Shape-aware loss."""

from __future__ import annotations

import pytest
import torch

import segfuse as sf
from all_losses import problem
from compare import close, evaluate

EXACT = {"from_logits": False}
Y = torch.tensor([[[0, 1, 1, 1, 0, 0, 0, 0]]])
P = torch.tensor([[[0.1, 0.2, 0.9, 0.8, 0.7, 0.6, 0.3, 0.2]]], dtype=torch.float64)
# contour of the target: 1, 3; predicted 2..5, contour: 2, 5; distances of those: 1, 2; mismatch: 1, 4, 5
ENTROPY = -torch.log(torch.where(Y == 1, P, 1 - P))


@pytest.mark.parametrize(
    ("form", "e"), [("curve", [0, 1.5, 0, 0, 1.5, 1.5, 0, 0]), ("pixel", [0, 0, 0, 0, 1, 2, 0, 0])]
)
def test_by_hand(backend, form, e):
    e = torch.tensor([[e]], dtype=torch.float64)
    close(sf.ShapeAwareLoss(form=form, **EXACT)(P, Y), ((1 + e) * ENTROPY).mean(), 1e-13)
    close(sf.ShapeAwareLoss(form=form, spacing=(0.5,), **EXACT)(P, Y), ((1 + e / 2) * ENTROPY).mean(), 1e-13)


def test_without_a_contour_it_is_cross_entropy(backend):
    x, y = problem("binary", (6, 7))
    for target, logits in ((torch.zeros_like(y), x), (torch.ones_like(y), x), (y, -x.abs()), (y, x.abs())):
        close(sf.ShapeAwareLoss()(logits, target), sf.CrossEntropyLoss()(logits, target), 1e-13)


def test_classes_add_up(backend):
    x, y = problem("multiclass", (6, 7))
    p = torch.softmax(x, 1)
    e = torch.zeros(y.shape, dtype=torch.float64)
    for c in range(3):
        one = sf.ShapeAwareLoss(form="pixel", mode="binary", reduction="none", from_logits=False)
        plain = sf.CrossEntropyLoss(mode="binary", reduction="none", from_logits=False)
        target = (y == c).long()[:, None]
        e += (one(p[:, c : c + 1], target) / plain(p[:, c : c + 1], target) - 1)[:, 0]
    expected = ((1 + e) * sf.CrossEntropyLoss(reduction="none")(x, y)).mean()
    close(evaluate(sf.ShapeAwareLoss(form="pixel"), x, y)[0], expected, 1e-10)


def test_a_given_map_is_e(backend):
    x, y = problem("binary", (6, 7))
    e = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = sf.CrossEntropyLoss()(x, y, weight_map=1 + e)
    close(sf.ShapeAwareLoss()(x, y, distance_map=e), expected, 1e-13)
