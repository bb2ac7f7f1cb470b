"""Boundary loss."""

from __future__ import annotations

import pytest
import torch

import segfuse as sf
from all_losses import problem
from by_hand import slope
from compare import close, evaluate

EXACT = {"from_logits": False}
Y = torch.tensor([[[0, 0, 1, 1, 1, 1]]])
P = torch.tensor([[[0.1, 0.2, 0.3, 0.5, 0.7, 0.9]]], dtype=torch.float64)
# distances: outside 2 1, inside 1 2 3 4; in units of 0.5 per pixel half of that


@pytest.mark.parametrize(
    ("delta", "spacing", "phi"),
    [
        (1.0, None, [2, 1, 0, -1, -2, -3]),
        (0.0, None, [2, 1, -1, -2, -3, -4]),
        (0.25, (0.5,), [1, 0.5, -0.25, -0.75, -1.25, -1.75]),
    ],
)
def test_by_hand(backend, delta, spacing, phi):
    phi = torch.tensor([[phi]], dtype=torch.float64)
    loss = sf.BoundaryLoss(delta=delta, spacing=spacing, **EXACT)
    close(loss(P, Y), (phi * P).mean(), 1e-14)
    close(slope(loss, P, Y), phi / 6, 1e-14)


def test_default_delta_is_one():
    close(sf.BoundaryLoss(**EXACT)(P, Y), sf.BoundaryLoss(delta=1, **EXACT)(P, Y), 0)


def test_multiclass_leaves_out_the_background_unless_asked(backend):
    x, y = problem("multiclass", (6, 7))
    p = torch.softmax(x, 1)
    per_class = [
        evaluate(sf.BoundaryLoss(mode="binary", from_logits=False), p[:, c : c + 1], (y == c).long())[0]
        for c in range(3)
    ]
    close(evaluate(sf.BoundaryLoss(), x, y)[0], (per_class[1] + per_class[2]) / 2, 1e-12)
    close(evaluate(sf.BoundaryLoss(include_background=True), x, y)[0], sum(per_class) / 3, 1e-12)


def test_a_given_map_is_the_one_that_would_be_made(backend):
    x, y = problem("multiclass", (6, 7))
    loss = sf.BoundaryLoss(include_background=True)
    phi = torch.stack([sf.transforms.SignedDistanceMap(num_classes=3)(one) for one in y])
    found, expected = evaluate(loss, x, y, distance_map=phi), evaluate(loss, x, y)
    close(found[0], expected[0], 1e-6)
    close(found[1], expected[1], 1e-6)
    assert not torch.equal(found[0], evaluate(loss, x, y, distance_map=2 * phi)[0])


def test_shares_the_pass_of_dice(calls):
    x, y = problem("binary", (8, 9))
    loss = sf.DiceLoss() + 0.1 * sf.BoundaryLoss()
    x.requires_grad_()
    value, terms = loss(x, y, return_terms=True)
    value.backward()
    assert calls == {"formula_forward": 1, "formula_backward": 1}
    close(value.detach(), terms["dice"] + 0.1 * terms["boundary"], 1e-12)
    close(terms["boundary"], sf.BoundaryLoss()(x, y).detach(), 1e-12)
    close(terms["dice"], sf.DiceLoss()(x, y).detach(), 1e-12)


def test_two_losses_that_measure_are_two_passes(backend):
    x, y = problem("binary", (8, 9))
    parts = {"boundary": sf.BoundaryLoss(), "hausdorff": sf.HausdorffDTLoss(), "dice": sf.DiceLoss()}
    loss = sf.CompoundLoss(parts)
    assert loss.passes() == [["boundary", "dice"], ["hausdorff"]]
    _, terms = loss(x, y, return_terms=True)
    for name, part in parts.items():
        close(terms[name], part(x, y), 1e-12)
    phi = torch.ones_like(x)
    given = loss(x, y, distance_map={"boundary": phi})
    close(given, loss(x, y) - terms["boundary"] + parts["boundary"](x, y, distance_map=phi), 1e-12)
    with pytest.raises(ValueError, match=r"\['boundary', 'hausdorff'\].*Try:"):
        loss(x, y, distance_map=phi)
