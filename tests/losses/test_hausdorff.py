"""Hausdorff losses."""

from __future__ import annotations

import pytest
import torch

import segfuse as sf
from all_losses import problem
from by_hand import slope
from compare import close, evaluate

EXACT = {"from_logits": False}
Y = torch.tensor([[[0, 0, 1, 1, 1, 1]]])
P = torch.tensor([[[0.1, 0.2, 0.3, 0.6, 0.7, 0.9]]], dtype=torch.float64)
OF_TARGET = torch.tensor([[[2.0, 1, 1, 2, 3, 4]]], dtype=torch.float64)
OF_PREDICTION = torch.tensor([[[3.0, 2, 1, 1, 2, 3]]], dtype=torch.float64)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 1.5])
def test_distance_transform_by_hand(backend, alpha):
    d = OF_TARGET**alpha + OF_PREDICTION**alpha
    loss = sf.HausdorffDTLoss(alpha=alpha, **EXACT)
    close(loss(P, Y), ((P - Y) ** 2 * d).mean(), 1e-13)
    close(slope(loss, P, Y), 2 * (P - Y) * d / 6, 1e-13)
    one_sided = sf.HausdorffDTLoss(alpha=alpha, one_sided=True, spacing=(0.5,), **EXACT)
    close(one_sided(P, Y), ((P - Y) ** 2 * (OF_TARGET / 2) ** alpha).mean(), 1e-13)


def test_distance_transform_log(backend):
    value, grad = evaluate(sf.HausdorffDTLoss(**EXACT), P, Y)
    found = evaluate(sf.HausdorffDTLoss(log=True, **EXACT), P, Y)
    close(found[0], torch.log1p(value), 1e-14)
    close(found[1], grad / (1 + value), 1e-14)


def test_hard_prediction(backend):
    """No class above one half: nothing is predicted; under argmax the largest is."""
    p = torch.tensor([[[0.4, 0.4, 0.2], [0.35, 0.3, 0.1], [0.25, 0.3, 0.7]]], dtype=torch.float64)
    y = torch.tensor([[1, 2, 2]])
    hot = torch.nn.functional.one_hot(y, 3).movedim(-1, 1)
    squares = (p - hot) ** 2
    of_target = torch.tensor([[[0.0, 0, 0], [1, 1, 2], [1, 1, 2]]], dtype=torch.float64)
    threshold = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [2, 1, 1]]], dtype=torch.float64)
    argmax = torch.tensor([[[2.0, 1, 1], [0, 0, 0], [2, 1, 1]]], dtype=torch.float64)
    for hard, field in (("threshold", threshold), ("argmax", argmax)):
        loss = sf.HausdorffDTLoss(alpha=1, hard=hard, mode="multiclass", include_background=True, **EXACT)
        close(loss(p, y), (squares * (of_target + field)).mean(), 1e-13)
        loss = sf.HausdorffDTLoss(alpha=1, hard=hard, mode="multiclass", **EXACT)
        close(loss(p, y), (squares * (of_target + field))[:, 1:].mean(), 1e-13)


def test_distance_transform_with_a_given_map(backend):
    x, y = problem("binary", (6, 7))
    d = torch.stack([sf.transforms.DistanceMap()(one) for one in y])
    for loss in (sf.HausdorffDTLoss(), sf.HausdorffDTLoss(alpha=1.5, one_sided=True)):
        close(evaluate(loss, x, y, distance_map=d)[0], evaluate(loss, x, y)[0], 1e-6)
        close(evaluate(loss, x, y, distance_map=d[:, 0])[1], evaluate(loss, x, y)[1], 1e-6)


def test_nothing_to_measure(backend):
    """Prediction and target both empty or both full: 0, although p is not y."""
    x = torch.full((1, 1, 4, 5), -1.0, dtype=torch.float64)
    for sign, y in ((1, torch.zeros(1, 1, 4, 5)), (-1, torch.ones(1, 1, 4, 5))):
        value, grad = evaluate(sf.HausdorffDTLoss(), sign * x, y)
        assert value == 0 and not grad.any()
