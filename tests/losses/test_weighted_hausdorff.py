"""The weighted Hausdorff distance."""

from __future__ import annotations

from math import inf, sqrt

import pytest
import torch

import segfuse as sf
from all_losses import problem
from compare import close, evaluate
from hard_pairs import blobs


def test_by_hand(backend):
    """Three pixels in a row, a point on the last."""
    p, y = torch.tensor([[[0.5, 0.25, 0.75]]]).double(), torch.tensor([[[0, 0, 1]]])
    near = (0.5 * 2 + 0.25 * 1) / (1.5 + 1e-3)
    f = 0.5 * 2 + 0.5 * 3 + 1e-3, 0.25 * 1 + 0.75 * 3 + 1e-3, 0.25 * 3 + 1e-3
    for alpha in (-1.0, -3.0):
        mean = (sum(v**alpha for v in f) / 3) ** (1 / alpha)
        close(sf.WeightedHausdorffLoss(alpha=alpha, eps=1e-3, from_logits=False)(p, y), near + mean, 1e-13)
    close(sf.WeightedHausdorffLoss(alpha=-inf, eps=1e-3, from_logits=False)(p, y), near + f[2], 1e-13)


def test_points_in_place_of_a_mask(backend):
    x, y = problem("binary", (7, 9))
    points = [mask[0].nonzero() for mask in y]
    loss = sf.WeightedHausdorffLoss()
    expected, found = evaluate(loss, x, y), loss(x, points)
    close(found, expected[0], 1e-13)
    close(sf.WeightedHausdorffLoss(mode="binary")(x[:, 0], points), expected[0], 1e-13)
    with pytest.raises(ValueError, match=r"one channel.*Try: "):
        loss(*[problem("multiclass")[0], points])
    with pytest.raises(ValueError, match="each of the 2 images"):
        loss(x, points[:1])


def test_no_points_cost_the_diagonal(backend):
    x = problem("binary", (6, 8))[0]
    value, grad = evaluate(sf.WeightedHausdorffLoss(), x, torch.zeros_like(x))
    close(value, sqrt(36 + 64), 1e-14)
    assert not grad.any()


def test_mean_over_images(backend):
    x, y = problem("multilabel", (6, 7))
    none = sf.WeightedHausdorffLoss(mode="multilabel", reduction="none", class_weight=[0.5, 1.0, 2.0])(x, y)
    assert none.shape == (2, 3)
    weighted = sf.WeightedHausdorffLoss(mode="multilabel", class_weight=[0.5, 1.0, 2.0])
    close(weighted(x, y), none.sum() / 7, 1e-13)


def test_learns_to_find_the_object():
    x, y = blobs((1, 1, 24, 24))
    x = torch.zeros_like(x).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        loss = sf.WeightedHausdorffLoss()(x, y)
        loss.backward()
        optimizer.step()
    assert loss < 5
    assert y.flatten()[x.argmax()] == 1
