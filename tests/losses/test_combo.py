"""Combo, Dice + CE, Dice + focal."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import segfuse as sf
from all_losses import problem
from by_hand import TP, P, Y
from compare import close, evaluate

EXACT = {"from_logits": False}
DICE = (2 * TP + 0.5) / (1.6 + 2 + 0.5)


def test_combo_by_hand(backend):
    """alpha is the share of the cross-entropy, beta the weight of its positives."""
    cross = 0.8 * -(math.log(0.8) + math.log(0.1)) + 0.2 * -(math.log(0.6) + math.log(0.7))
    loss = sf.ComboLoss(alpha=0.3, beta=0.8, smooth=0.5, **EXACT)
    close(loss(P, Y), 0.3 * cross / 4 + 0.7 * (1 - DICE), 1e-13)
    lower = sf.ComboLoss(alpha=0.3, beta=0.8, smooth=0.5, offset=False, **EXACT)
    close(lower(P, Y), 0.3 * cross / 4 - 0.7 * DICE, 1e-13)


def test_combo_pushes_every_pixel_towards_its_target(backend):
    """The authors' code loses a parenthesis and rewards wrong negatives."""
    x, y = problem("binary")
    grad = evaluate(sf.ComboLoss(alpha=0.9), x, y)[1]
    assert (grad[y == 1] < 0).all() and (grad[y == 0] > 0).all()


def test_combo_of_classes(backend):
    x, y = problem("multiclass")
    w = torch.tensor([0.2, 0.8, 0.8], dtype=torch.float64)
    expected = 0.3 * F.cross_entropy(x, y, w, reduction="none").mean() + 0.7 * sf.DiceLoss()(x, y)
    close(sf.ComboLoss(alpha=0.3, beta=0.8)(x, y), expected, 1e-13)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_combo_of_one_part(backend, alpha):
    x, y = problem("binary")
    part = sf.BalancedCrossEntropyLoss(beta=0.8) if alpha else sf.DiceLoss()
    close(sf.ComboLoss(alpha=alpha, beta=0.8)(x, y), part(x, y), 1e-13)


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_dice_and_cross_entropy(backend, mode):
    x, y = problem(mode)
    loss = sf.DiceCELoss(lambda_dice=0.4, lambda_ce=1.7, smooth=0.5, batch=True, label_smoothing=0.1, mode=mode)
    dice = sf.DiceLoss(smooth=0.5, batch=True, mode=mode)(x, y)
    cross = sf.CrossEntropyLoss(label_smoothing=0.1, mode=mode)(x, y)
    close(loss(x, y), 0.4 * dice + 1.7 * cross, 1e-13)
    _, terms = loss(x, y, return_terms=True)
    close(terms["dice"], dice, 1e-13)
    close(terms["cross_entropy"], cross, 1e-13)


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_dice_and_focal(backend, mode):
    x, y = problem(mode)
    settings = {"alpha": 0.3, "gamma": 1.2}
    loss = sf.DiceFocalLoss(lambda_dice=0.4, lambda_focal=1.7, smooth=0.5, mode=mode, **settings)
    expected = 0.4 * sf.DiceLoss(smooth=0.5, mode=mode)(x, y) + 1.7 * sf.FocalLoss(mode=mode, **settings)(x, y)
    close(loss(x, y), expected, 1e-13)


def test_shared_options_reach_every_term(backend):
    x, y = problem("multiclass")
    hidden = torch.where(torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) < 0.3, 7, y)
    common = {"ignore_index": 7, "class_weight": [0.2, 1.0, 3.0]}
    for loss, terms in (
        (sf.DiceCELoss(**common), (sf.DiceLoss(**common), sf.CrossEntropyLoss(**common))),
        (sf.DiceFocalLoss(**common), (sf.DiceLoss(**common), sf.FocalLoss(**common))),
    ):
        close(loss(x, hidden), sum(term(x, hidden) for term in terms), 1e-13)
