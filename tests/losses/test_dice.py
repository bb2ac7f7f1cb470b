"""Dice and its relatives."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import segfuse as sf
from all_losses import problem
from by_hand import FN, FP, TN, TP, P, Y, probabilities, slope
from compare import close, evaluate

EXACT = {"from_logits": False}


def test_by_hand(backend):
    close(sf.DiceLoss(**EXACT)(P, Y), 1 - (2 * TP + 1) / (1.6 + 2 + 1), 1e-14)
    close(sf.DiceLoss(smooth=0.0, **EXACT)(P, Y), 1 - 1.8 / 3.6, 1e-14)
    close(sf.DiceLoss(smooth=(0.1, 0.5), **EXACT)(P, Y), 1 - 1.9 / 4.1, 1e-14)
    assert TP + FN == 2 and pytest.approx(1.6) == TP + FP and TP + FP + FN + TN == 4


def test_gradient_by_hand(backend):
    """-2/B where y is 1, + A/B^2 everywhere."""
    a, b = 2 * TP + 0.1, 3.6 + 0.5
    expected = torch.tensor([[[-2 / b, 0, -2 / b, 0]]], dtype=torch.float64) + a / b**2
    close(slope(sf.DiceLoss(smooth=(0.1, 0.5), **EXACT)), expected, 1e-13)


def test_squares_by_hand(backend):
    squares = 0.64 + 0.16 + 0.01 + 0.09
    close(sf.DiceLoss(squared=True, smooth=0.5, **EXACT)(P, Y), 1 - (1.8 + 0.5) / (squares + 2 + 0.5), 1e-14)
    y = torch.tensor([[[0.5, 0.0, 1.0, 0.25]]], dtype=torch.float64)
    product = 0.4 + 0.1 + 0.075
    expected = 1 - (2 * product + 0.5) / (squares + 0.25 + 1 + 0.0625 + 0.5)
    close(sf.DiceLoss(squared=True, smooth=0.5, **EXACT)(P, y), expected, 1e-14)


def test_logarithm(backend):
    loss = sf.DiceLoss(log_loss=True, smooth=0.0, **EXACT)
    close(loss(P, Y), -math.log(0.5), 1e-14)
    value, grad = evaluate(loss, torch.tensor([[[0.0, 1.0]]]).double(), torch.tensor([[[1, 0]]]))
    close(value, -math.log(1e-7), 1e-12)
    assert grad.isfinite().all()


def test_groups(backend):
    """One loss per sample, or per batch; one per class, or one of all."""
    p = torch.tensor(
        [[[0.8, 0.4], [0.2, 0.6]], [[0.1, 0.3], [0.9, 0.7]]], dtype=torch.float64
    )  # (sample, class, pixel)
    y = torch.tensor([[0, 1], [1, 1]])

    def dice(overlap: float, sizes: float) -> float:
        return 1 - (2 * overlap + 1) / (sizes + 1)

    groups = [[dice(0.8, 1.2 + 1), dice(0.6, 0.8 + 1)], [dice(0, 0.4), dice(1.6, 1.6 + 2)]]
    none = sf.DiceLoss(reduction="none", **EXACT)(p, y)
    close(none, torch.tensor(groups, dtype=torch.float64), 1e-14)
    close(sf.DiceLoss(**EXACT)(p, y), sum(map(sum, groups)) / 4, 1e-14)
    close(sf.DiceLoss(reduction="sum", **EXACT)(p, y), sum(map(sum, groups)), 1e-14)
    close(sf.DiceLoss(include_background=False, **EXACT)(p, y), (groups[0][1] + groups[1][1]) / 2, 1e-14)
    batch = [dice(0.8, 1.6 + 1), dice(2.2, 2.4 + 3)]
    close(sf.DiceLoss(batch=True, reduction="none", **EXACT)(p, y), torch.tensor(batch, dtype=torch.float64), 1e-14)
    micro = [dice(1.4, 4), dice(1.6, 4)]
    close(sf.DiceLoss(average="micro", **EXACT)(p, y), sum(micro) / 2, 1e-14)
    close(sf.DiceLoss(average="micro", batch=True, **EXACT)(p, y), dice(3.0, 8), 1e-14)
    weighted = [(0.5 * a + 3 * b) / 3.5 for a, b in groups]
    close(sf.DiceLoss(class_weight=[0.5, 3.0], **EXACT)(p, y), sum(weighted) / 2, 1e-14)
    close(sf.DiceLoss(class_weight=[0.5, 3.0], reduction="none", **EXACT)(p, y)[0, 1], 3 * groups[0][1], 1e-14)
    micro = [dice(0.5 * 0.8 + 3 * 0.6, 0.5 * 2.2 + 3 * 1.8), dice(3 * 1.6, 0.5 * 0.4 + 3 * 3.6)]
    close(sf.DiceLoss(class_weight=[0.5, 3.0], average="micro", **EXACT)(p, y), sum(micro) / 2, 1e-14)


def test_background_leaves_after_the_softmax(backend):
    x, y = problem("multiclass")
    none = sf.DiceLoss(reduction="none")(x, y)
    close(sf.DiceLoss(include_background=False)(x, y), none[:, 1:].mean(), 1e-13)
    close(sf.DiceLoss(include_background=False, reduction="none")(x, y), none[:, 1:], 1e-13)
    weight = torch.tensor([9.0, 1.0, 3.0], dtype=torch.float64)
    loss = sf.DiceLoss(include_background=False, class_weight=weight)
    close(loss(x, y), (none * weight)[:, 1:].sum() / 8, 1e-13)


def test_groups_without_target(backend):
    """As the formula says, 0, or left out."""
    x, y = problem("multiclass")
    y[0][y[0] == 2] = 0  # class 2 is absent from sample 0; sample 1 is class 1 alone
    y[1] = 1
    groups = sf.DiceLoss(reduction="none")(x, y)
    present = torch.tensor([[1.0, 1, 0], [0, 1, 0]], dtype=torch.float64)
    close(sf.DiceLoss()(x, y), groups.mean(), 1e-13)
    close(sf.DiceLoss(empty="zero")(x, y), (groups * present).mean(), 1e-13)
    close(sf.DiceLoss(empty="skip")(x, y), ((groups[0, 0] + groups[0, 1]) / 2 + groups[1, 1]) / 2, 1e-13)
    v = torch.tensor([0.5, 1.0, 7.0], dtype=torch.float64)
    weighted = ((0.5 * groups[0, 0] + groups[0, 1]) / 1.5 + groups[1, 1]) / 2
    close(sf.DiceLoss(empty="skip", class_weight=v)(x, y), weighted, 1e-13)
    batch = sf.DiceLoss(reduction="none", batch=True)(x, y)
    close(sf.DiceLoss(empty="skip", batch=True)(x, y), batch[:2].mean(), 1e-13)
    close(sf.DiceLoss(empty="zero", batch=True)(x, y), batch[:2].sum() / 3, 1e-13)
    for setting in ("zero", "skip"):
        none = sf.DiceLoss(empty=setting, reduction="none")(x, y)
        close(none, groups * present, 1e-13)


def test_a_sample_without_any_class_contributes_0(backend):
    x, y = problem("multilabel")
    y[0] = 0
    groups = sf.DiceLoss(mode="multilabel", reduction="none")(x, y)
    close(sf.DiceLoss(mode="multilabel", empty="skip")(x, y), groups[1].mean() / 2, 1e-13)


@pytest.mark.parametrize("settings", [{}, {"squared": True}, {"log_loss": True}], ids=str)
def test_nothing_against_nothing_is_0(backend, settings):
    """Without smoothing, an empty prediction of an empty target: 0 by definition, with gradient 0."""
    loss = sf.DiceLoss(smooth=0.0, **EXACT, **settings)
    value, grad = evaluate(loss, torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
    assert value == 0 and not grad.any()


def test_empty_and_full_targets(backend):
    total = float(P.sum())
    close(sf.DiceLoss(smooth=0.5, **EXACT)(P, torch.zeros_like(Y)), 1 - 0.5 / (total + 0.5), 1e-14)
    close(sf.DiceLoss(smooth=0.5, **EXACT)(P, torch.ones_like(Y)), 1 - (2 * total + 0.5) / (total + 4.5), 1e-14)


def test_soft_labels(backend):
    """The product of soft labels is not smallest at p = y; with l1 it is, and hard labels give the same."""
    y = torch.tensor([[[0.5, 0.0, 1.0, 0.25]]], dtype=torch.float64)
    distance = 0.3 + 0.4 + 0.9 + 0.05
    overlap = (1.6 + 1.75 - distance) / 2
    close(sf.DiceLoss(soft_label="l1", **EXACT)(P, y), 1 - (2 * overlap + 1) / (1.6 + 1.75 + 1), 1e-14)
    close(sf.DiceLoss(soft_label="l1", **EXACT)(y, y), 0.0, 0)
    assert sf.DiceLoss(**EXACT)(y, y) > 0.1
    for a, b in zip(evaluate(sf.DiceLoss(soft_label="l1", **EXACT), P, Y), evaluate(sf.DiceLoss(**EXACT), P, Y)):
        close(a, b, 1e-13)


def test_weights_and_masks(backend):
    w = torch.tensor([[0.5, 2.0, 1.0, 3.0]], dtype=torch.float64)
    close(sf.DiceLoss(**EXACT)(P, Y, weight_map=w), 1 - (2 * 0.5 + 1) / (0.4 + 0.8 + 0.1 + 0.9 + 1.5 + 1), 1e-14)
    mask = torch.tensor([[True, True, False, True]])
    close(sf.DiceLoss(**EXACT)(P, Y, mask=mask), 1 - (2 * 0.8 + 1) / (1.5 + 1 + 1), 1e-14)


# ------------------------------------------------------------------------------------------- generalized


@pytest.mark.parametrize(("weight", "power"), [("square", 2), ("simple", 1), ("uniform", 0)])
def test_generalized_by_hand(backend, weight, power):
    p = probabilities([0.7, 0.2, 0.6, 0.5], [0.3, 0.8, 0.4, 0.5])
    y = torch.tensor([[0, 1, 0, 0]])
    w = [1 / 3**power, 1.0]
    a = 2 * (w[0] * 1.8 + w[1] * 0.8) + 0.1
    b = w[0] * (2.0 + 3) + w[1] * (2.0 + 1) + 0.3
    loss = sf.GeneralizedDiceLoss(weight=weight, smooth=(0.1, 0.3), **EXACT)
    close(loss(p, y), 1 - a / b, 1e-13)


def test_generalized_absent_class_gets_the_largest_weight(backend):
    """Not an infinite one, beside which nothing else would count."""
    p = probabilities([0.6, 0.2, 0.6, 0.5], [0.3, 0.7, 0.2, 0.1], [0.1, 0.1, 0.2, 0.4])
    y = torch.tensor([[0, 1, 0, 0]])
    w = [1 / 9, 1.0, 1.0]
    a = 2 * (w[0] * 1.7 + w[1] * 0.7) + 1e-5
    b = w[0] * (1.9 + 3) + w[1] * (1.3 + 1) + w[2] * 0.8 + 1e-5
    close(sf.GeneralizedDiceLoss(**EXACT)(p, y), 1 - a / b, 1e-13)


def test_generalized_without_any_class(backend):
    """1 - sn / sd, which is 0, with gradient 0."""
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    value, grad = evaluate(sf.GeneralizedDiceLoss(mode="multilabel"), x, torch.zeros(2, 3, 4))
    assert value == 0 and not grad.any()
    value, _ = evaluate(sf.GeneralizedDiceLoss(mode="multilabel", smooth=(1.0, 4.0)), x, torch.zeros(2, 3, 4))
    assert value == 0.75


def test_generalized_of_a_batch(backend):
    x, y = problem("multiclass")
    flat_x, flat_y = x.movedim(1, 0).reshape(1, 3, -1), y.reshape(1, -1)
    close(sf.GeneralizedDiceLoss(batch=True)(x, y), sf.GeneralizedDiceLoss()(flat_x, flat_y), 1e-13)
    none = sf.GeneralizedDiceLoss(reduction="none")(x, y)
    assert none.shape == (2,)
    close(sf.GeneralizedDiceLoss()(x, y), none.mean(), 1e-13)


# ------------------------------------------------------------------------------------------- log-cosh


def test_log_cosh_by_hand(backend):
    p, y = torch.cat([P, 1 - P]), torch.cat([Y, Y])
    one = 1 - (2 * TP + 0.5) / (1.6 + 2.5)
    two = 1 - (2 * FN + 0.5) / (2.4 + 2.5)
    loss = sf.LogCoshDiceLoss(smooth=0.5, **EXACT)
    close(loss(p, y), (math.log(math.cosh(one)) + math.log(math.cosh(two))) / 2, 1e-13)
    first = sf.LogCoshDiceLoss(smooth=0.5, reduce_first=True, **EXACT)
    close(first(p, y), math.log(math.cosh((one + two) / 2)), 1e-13)
    a, b = evaluate(loss, P, Y)[1], math.tanh(one) * evaluate(sf.DiceLoss(smooth=0.5, **EXACT), P, Y)[1]
    close(a, b, 1e-13)


def test_log_cosh_of_a_small_loss_keeps_its_digits(backend):
    x = torch.full((1, 1, 100), 12.0, dtype=torch.float64)
    dice = sf.DiceLoss()(x, torch.ones(1, 1, 100))
    assert dice < 1e-5
    close(sf.LogCoshDiceLoss()(x, torch.ones(1, 1, 100)), dice**2 / 2, 1e-9)


# ------------------------------------------------------------------------------------------- self-adjusting


def _q(p: float, alpha: float) -> float:
    return (1 - p) ** alpha * p


def test_self_adjusting_pixel_by_hand(backend):
    loss = sf.SelfAdjustingDiceLoss(alpha=0.7, smooth=0.5, **EXACT)
    expected = []
    for p, y in zip(P.flatten().tolist(), Y.flatten().tolist()):
        q = _q(p, 0.7)
        expected.append(1 - (2 * q * y + 0.5) / (q + y + 0.5))
    close(loss(P, Y), sum(expected) / 4, 1e-13)
    none = sf.SelfAdjustingDiceLoss(alpha=0.7, smooth=0.5, reduction="none", **EXACT)(P, Y)
    close(none, torch.tensor(expected, dtype=torch.float64).reshape(P.shape), 1e-13)


def test_self_adjusting_set_by_hand(backend):
    loss = sf.SelfAdjustingDiceLoss(form="set", alpha=1.3, smooth=(0.2, 0.5), **EXACT)
    q = [_q(p, 1.3) for p in P.flatten().tolist()]
    close(loss(P, Y), 1 - (2 * (q[0] + q[2]) + 0.2) / (sum(q) + 2 + 0.5), 1e-13)


def test_self_adjusting_classes(backend):
    """One problem per class, mean over pixels and classes; or the target class of each pixel alone."""
    p = probabilities([0.7, 0.2, 0.6], [0.2, 0.5, 0.3], [0.1, 0.3, 0.1])
    y = torch.tensor([[0, 2, -100]])

    def term(p: float, y: int) -> float:
        return 1 - (2 * _q(p, 1) * y + 1) / (_q(p, 1) + y + 1)

    own = term(0.7, 1), term(0.3, 1)
    rest = term(0.2, 0) + term(0.1, 0) + term(0.2, 0) + term(0.5, 0)
    close(sf.SelfAdjustingDiceLoss(**EXACT)(p, y), (sum(own) + rest) / 6, 1e-13)
    close(sf.SelfAdjustingDiceLoss(true_class_only=True, **EXACT)(p, y), sum(own) / 2, 1e-13)
    weighted = sf.SelfAdjustingDiceLoss(true_class_only=True, class_weight=[3.0, 1.0, 0.5], **EXACT)
    close(weighted(p, y), (3 * own[0] + 0.5 * own[1]) / 2, 1e-13)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_self_adjusting_positives_stop_early(backend, alpha):
    """For y = 1 the loss is smallest at p = 1 / (1 + alpha) and the same at 0 and 1."""
    loss = sf.SelfAdjustingDiceLoss(alpha=alpha, reduction="none", **EXACT)
    p = torch.linspace(0, 1, 601, dtype=torch.float64)[None, None]
    values = loss(p, torch.ones_like(p)).flatten()
    assert values.argmin() == round(600 / (1 + alpha))
    close(values[0], values[-1], 1e-14)


def test_self_adjusting_with_alpha_0_is_dice(backend):
    x, y = problem("multiclass")
    close(sf.SelfAdjustingDiceLoss(form="set", alpha=0.0)(x, y), sf.DiceLoss()(x, y), 1e-13)


# ------------------------------------------------------------------------------------------- in plain torch


def test_dice_is_the_plain_expression(backend):
    """What it replaces, with one-hot tensors and all."""
    x, y = problem("multiclass")

    def plain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        p, hot = torch.softmax(x, 1), F.one_hot(y, 3).movedim(-1, 1)
        overlap, sizes = (p * hot).sum((2, 3)), (p + hot).sum((2, 3))
        return (1 - (2 * overlap + 1) / (sizes + 1)).mean()

    for a, b in zip(evaluate(sf.DiceLoss(), x, y), evaluate(plain, x, y)):
        close(a, b, 1e-12)
