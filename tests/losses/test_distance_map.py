"""Cross-entropy weighed by distances."""

from __future__ import annotations

import math

import pytest
import torch

import segfuse as sf
from all_losses import problem
from compare import close, evaluate

EXACT = {"from_logits": False}
Y = torch.tensor([[[0, 0, 0, 1, 1, 0, 0, 1]]])
P = torch.tensor([[[0.1, 0.2, 0.3, 0.6, 0.7, 0.9, 0.4, 0.8]]], dtype=torch.float64)
ENTROPY = -torch.log(torch.where(Y == 1, P, 1 - P))


@pytest.mark.parametrize(
    ("options", "phi"),
    [  # d = 3 2 1 1 1 1 1 1; background from 1 to 3, object 1 throughout
        ({}, [0, 0.5, 1, 1, 1, 1, 1, 1]),
        ({"phi": "inverse"}, [0, 1, 2, 0, 0, 2, 2, 0]),
        ({"phi": "inverse", "spacing": (0.5,)}, [0, 0.5, 1, 0, 0, 1, 1, 0]),
    ],
)
def test_penalty_by_hand(backend, options, phi):
    phi = torch.tensor([[phi]], dtype=torch.float64)
    close(sf.DistanceMapCrossEntropyLoss(**options, **EXACT)(P, Y), ((1 + phi) * ENTROPY).mean(), 1e-13)


def test_one_label_is_plain_cross_entropy(backend):
    x, y = problem("multiclass", (5, 6))
    y[0] = 2
    loss, plain = (cls(reduction="none") for cls in (sf.DistanceMapCrossEntropyLoss, sf.CrossEntropyLoss))
    close(loss(x, y)[0], plain(x, y)[0], 1e-13)
    assert (loss(x, y)[1] > plain(x, y)[1] - 1e-12).all()


def test_a_given_map_is_phi(backend):
    x, y = problem("multiclass", (5, 6))
    phi = torch.rand(y.shape, generator=torch.Generator().manual_seed(0))
    expected = evaluate(sf.CrossEntropyLoss(), x, y, weight_map=1 + phi.double())
    found = evaluate(sf.DistanceMapCrossEntropyLoss(), x, y, distance_map=phi)
    close(found[0], expected[0], 1e-6)
    close(found[1], expected[1], 1e-6)


GAP = torch.tensor([[[1, 1, 0, 0, 0, 1, 1, 0]]])  # d1 + d2 = 1 + 3, 2 + 2, 3 + 1 between; 1 + 6 at the end


def gap(w0: float, sigma: float, *total: float) -> list[float]:
    return [w0 * math.exp(-(d**2) / (2 * sigma**2)) for d in total]


def test_unet_by_hand(backend):
    entropy = -torch.log(torch.where(GAP == 1, P, 1 - P))
    w = torch.ones(8, dtype=torch.float64)
    w[2:5] += torch.tensor(gap(10, 5, 4, 4, 4), dtype=torch.float64)
    w[7] += gap(10, 5, 7)[0]
    close(sf.UNetWeightedCrossEntropyLoss(**EXACT)(P, GAP), (w * entropy).mean(), 1e-13)
    everywhere = w.clone()
    everywhere[[0, 1, 5, 6]] += torch.tensor(gap(10, 5, 5, 4, 4, 5), dtype=torch.float64)
    loss = sf.UNetWeightedCrossEntropyLoss(only_background=False, **EXACT)
    close(loss(P, GAP), (everywhere * entropy).mean(), 1e-13)
    loss = sf.UNetWeightedCrossEntropyLoss(w0=3, sigma=2, spacing=(0.5,), beta=2.0, **EXACT)
    w = torch.where(GAP == 1, 2.0, 1.0)
    w[0, 0, [2, 3, 4, 7]] += torch.tensor(gap(3, 2, 2, 2, 2, 3.5))
    close(loss(P, GAP), (w * entropy).mean(), 1e-7)


def test_unet_with_instances_given(backend):
    """Two instances that touch are one component."""
    instances = torch.tensor([[[7, 7, 0, 0, 0, 9, 4, 0]]])
    found = sf.UNetWeightedCrossEntropyLoss(**EXACT)(P, GAP, instances=instances)
    entropy = -torch.log(torch.where(GAP == 1, P, 1 - P))
    w = torch.ones(8, dtype=torch.float64)
    w[2:5] += torch.tensor(gap(10, 5, 4, 4, 3), dtype=torch.float64)
    w[7] += gap(10, 5, 3)[0]
    close(found, (w * entropy).mean(), 1e-13)


def test_unet_class_weights(backend):
    """w_c weighs the class, the gap term stays."""
    x, y = problem("multiclass", (6, 7))
    v = [0.5, 1.0, 2.0]
    gaps = sf.UNetWeightedCrossEntropyLoss(reduction="none")(x, y) - sf.CrossEntropyLoss(reduction="none")(x, y)
    weighted = sf.CrossEntropyLoss(class_weight=v, reduction="none")(x, y)
    close(sf.UNetWeightedCrossEntropyLoss(class_weight=v)(x, y), (weighted + gaps).mean(), 1e-12)
    assert gaps[y == 0].gt(0).any() and not gaps[y > 0].any()


@pytest.mark.parametrize("y", [torch.zeros(1, 1, 5, 6), torch.nn.functional.pad(torch.ones(1, 1, 2, 2), (1, 3, 1, 2))])
def test_unet_with_fewer_than_two_instances_is_cross_entropy(backend, y):
    x = torch.linspace(-2, 2, 30, dtype=torch.float64).reshape(1, 1, 5, 6)
    close(sf.UNetWeightedCrossEntropyLoss()(x, y.long()), sf.CrossEntropyLoss()(x, y.long()), 1e-14)


def test_touching_objects_of_two_classes_are_two_instances(backend):
    y = torch.tensor([[0, 0, 1, 1, 2, 2, 0]])
    x = torch.zeros(1, 3, 7, dtype=torch.float64)
    gaps = sf.UNetWeightedCrossEntropyLoss(reduction="none")(x, y) / math.log(3) - 1
    expected = torch.zeros(1, 7, dtype=torch.float64)
    expected[0, [0, 1, 6]] = torch.tensor(gap(10, 5, 6, 4, 4), dtype=torch.float64)
    close(gaps, expected, 1e-12)
