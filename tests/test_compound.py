"""Sums of losses: one pass forward and one backward, whatever the number of terms."""

from __future__ import annotations

import abc
import copy
import pickle

import numpy as np
import pytest
import torch

import segfuse as sf
from all_losses import VARIANTS, problem
from compare import close, evaluate, same
from segfuse.ops import formula

MERGED = {
    "two": lambda: 0.5 * sf.FocalLoss(gamma=2.0) + sf.DiceLoss(),
    "three": lambda: sf.CrossEntropyLoss() + 0.3 * sf.TverskyLoss(alpha=0.1, beta=0.9) - 0.2 * sf.JaccardLoss(),
    "many": lambda: sf.CompoundLoss([(0.1 * i + 0.1, make()) for i, make in enumerate(FUSABLE)]),
    "combo": sf.ComboLoss,
    "dice_ce": sf.DiceCELoss,
    "dice_focal": sf.DiceFocalLoss,
    "exp_log": sf.ExponentialLogarithmicLoss,
    "unified_focal": sf.UnifiedFocalLoss,
    "nested": lambda: 0.5 * (sf.DiceCELoss() + 2 * sf.FocalLoss()) + sf.UnifiedFocalLoss(),
    "with a parameter": lambda: sf.TLoss() + sf.DiceLoss(squared=True),
    "own": lambda: sf.RegionLoss(lambda s: 1 - (s.tp + 1) / (s.true + s.fp + 1)) + sf.CrossEntropyLoss(),
}
FUSABLE = [
    sf.CrossEntropyLoss,
    sf.FocalLoss,
    lambda: sf.DiceLoss(batch=True),
    lambda: sf.DiceLoss(squared=True),
    sf.GeneralizedDiceLoss,
    sf.TverskyLoss,
    sf.FocalTverskyLoss,
    sf.SensitivitySpecificityLoss,
    sf.MCCLoss,
    sf.LogCoshDiceLoss,
    lambda: sf.DiceLoss(soft_label="l1"),
    lambda: sf.SelfAdjustingDiceLoss(form="set"),
]


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize("name", MERGED)
def test_one_call_forward_and_one_backward(calls, name, mode):
    x, y = problem(mode, dtype=torch.float32)
    loss = MERGED[name]()
    value = loss(x.requires_grad_(), y)
    assert sum(calls.values()) == 1, calls
    calls.clear()
    value.backward()
    assert sum(calls.values()) == 1, calls


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize("name", MERGED)
def test_terms_cost_no_pass(calls, name, mode):
    x, y = problem(mode, dtype=torch.float32)
    loss = MERGED[name]()
    value, terms = loss(x, y, return_terms=True)
    assert sum(calls.values()) == 1, calls
    assert list(terms) == list(loss.terms) and len(terms) > 1
    for found, term in zip(terms.values(), loss.terms.values(), strict=True):
        assert not found.requires_grad and found.dtype == value.dtype
        close(found, term(x, y).detach().double(), 1e-6)


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_a_sum_is_the_sum(backend, mode):
    """Of every loss with every other, value and gradient."""
    x, y = problem(mode)
    y[0, ..., 0] = -100
    losses = [variant(mode=mode) for variant in VARIANTS if mode in variant.modes]
    alone = [evaluate(loss, x, y) for loss in losses]
    for i in range(len(losses)):
        j = (i * 7 + 3) % len(losses)
        value, grad = evaluate(0.3 * losses[i] + 1.7 * losses[j], x, y)
        close(value, 0.3 * alone[i][0] + 1.7 * alone[j][0], 1e-12)
        close(grad, 0.3 * alone[i][1] + 1.7 * alone[j][1], 1e-10)


def test_operators():
    x, y = problem("multiclass")
    dice, focal = sf.DiceLoss()(x, y), sf.FocalLoss()(x, y)
    for loss, expected in (
        (sf.DiceLoss() + sf.FocalLoss(), dice + focal),
        (sf.DiceLoss() - sf.FocalLoss(), dice - focal),
        (2 * sf.DiceLoss(), 2 * dice),
        (sf.DiceLoss() * 2, 2 * dice),
        (sf.DiceLoss() / 4, dice / 4),
        (-sf.DiceLoss(), -dice),
        (0.5 * (sf.DiceLoss() + 3 * sf.FocalLoss()) + sf.DiceLoss(), 1.5 * dice + 1.5 * focal),
        (sum([sf.FocalLoss(), sf.FocalLoss()], start=sf.DiceLoss()), dice + 2 * focal),
        (sum([sf.FocalLoss(), sf.DiceLoss()]), dice + focal),
        (torch.tensor(0.5) * sf.DiceLoss() / torch.tensor(2), dice / 4),
        (np.float32(0.5) * sf.DiceLoss() * np.int64(3), 1.5 * dice),
        (sf.CompoundLoss([(np.float32(0.5), sf.DiceLoss())]), 0.5 * dice),
    ):
        assert isinstance(loss, sf.CompoundLoss)
        close(loss(x, y), expected, 1e-13)


def test_operators_leave_their_operands_alone():
    dice, focal = sf.DiceLoss(), sf.FocalLoss()
    both = dice + focal
    more = 2 * both + dice
    assert list(both.weights_by_name.values()) == [1.0, 1.0]
    assert list(more.weights_by_name.values()) == [2.0, 2.0, 1.0]


def test_operators_refuse_what_is_no_loss():
    for wrong in (
        lambda: sf.DiceLoss() + 1,
        lambda: sf.DiceLoss() * sf.DiceLoss(),
        lambda: sf.DiceLoss() * "2",
        lambda: 1 / sf.DiceLoss(),
    ):
        with pytest.raises(TypeError):
            wrong()


def test_names():
    """Given ones; else those of the classes, numbered when they repeat."""
    loss = sf.CompoundLoss({"shape": (0.5, sf.DiceLoss()), "pixels": sf.CrossEntropyLoss()})
    assert loss.weights_by_name == {"shape": 0.5, "pixels": 1.0}
    loss = sf.CompoundLoss([sf.DiceLoss(), (2, sf.DiceLoss(squared=True)), sf.LogCoshDiceLoss()])
    assert loss.weights_by_name == {"dice": 1.0, "dice_2": 2.0, "log_cosh_dice": 1.0}
    assert list((sf.DiceLoss() + sf.FocalLoss()).terms) == ["dice", "focal"]


def test_a_weight_may_change_between_steps():
    x, y = problem("multiclass")
    loss = 0.5 * sf.FocalLoss() + sf.DiceLoss()
    focal, dice = sf.FocalLoss()(x, y), sf.DiceLoss()(x, y)
    close(loss(x, y), 0.5 * focal + dice, 1e-13)
    for weight in (0.25, 0.0, 3.0):
        loss.weights_by_name["focal"] = weight
        close(loss(x, y), weight * focal + dice, 1e-13)


def test_a_setting_of_a_term_may_change_between_steps():
    x, y = problem("multiclass")
    loss = sf.FocalLoss() + sf.DiceLoss()
    loss(x, y)
    loss.terms["focal"].gamma = 1.0
    close(loss(x, y), sf.FocalLoss(gamma=1.0)(x, y) + sf.DiceLoss()(x, y), 1e-13)


def test_another_term():
    """A term that is replaced, removed or added is the one that counts, however alike the two are."""
    x, y = problem("multiclass")
    dice, focal = sf.DiceLoss()(x, y), sf.FocalLoss()(x, y)
    loss = 0.5 * sf.FocalLoss() + sf.DiceLoss()
    close(loss(x, y), 0.5 * focal + dice, 1e-13)
    loss.terms["dice"] = sf.DiceLoss(smooth=500.0)
    other = sf.DiceLoss(smooth=500.0)(x, y)
    close(loss(x, y), 0.5 * focal + other, 1e-13)
    del loss.terms["dice"]
    value, terms = loss(x, y, return_terms=True)
    close(value, 0.5 * focal, 1e-13)
    assert list(terms) == ["focal"] and loss.weights_by_name == {"focal": 0.5}
    loss.terms["shape"] = sf.DiceLoss()
    close(loss(x, y), 0.5 * focal + dice, 1e-13)
    loss.weights_by_name["shape"] = np.float32(3)
    loss.weights_by_name.update(focal=2)
    assert loss.weights_by_name == {"focal": 2.0, "shape": 3.0} and "3 * shape" in repr(loss)
    for same_one in (loss, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        close(same_one(x, y), 2 * focal + 3 * dice, 1e-13)
        same_one.weights_by_name["shape"] = 1.0
        close(same_one(x, y), 2 * focal + dice, 1e-13)
        loss.weights_by_name = {"shape": 3.0}
    supervised = sf.DeepSupervisionLoss(sf.DiceLoss())
    close(supervised(x, y), dice, 1e-13)
    supervised.terms["criterion"] = sf.DiceLoss(smooth=500.0)
    close(supervised(x, y), other, 1e-13)
    supervised.criterion = sf.FocalLoss()
    close(supervised(x, y), focal, 1e-13)


@pytest.mark.parametrize("preset", [sf.ComboLoss, sf.DiceCELoss, sf.DiceFocalLoss, sf.UnifiedFocalLoss])
def test_factors_of_a_preset_are_its_settings(preset):
    loss = preset()
    with pytest.raises(
        TypeError, match=f"{preset.__name__} follow from its settings. Try: loss.{preset.weight_setting}"
    ):
        loss.weights_by_name.update(dict.fromkeys(loss.terms, 5.0))
    before = dict(loss.weights_by_name)
    setattr(loss, preset.weight_setting, 0.25)
    assert loss.weights_by_name != before and 0.25 in loss.weights_by_name.values()
    assert copy.deepcopy(loss).weights_by_name == loss.weights_by_name


def test_passes_are_made_once(monkeypatch):
    """A sum of several passes traces its formulas once for each state, not in every call."""
    x, y = problem("multiclass")
    loss = sf.DiceLoss() + sf.CrossEntropyLoss() + 0.3 * sf.LovaszLoss()
    apart = sf.DiceLoss() + sf.CrossEntropyLoss()
    close(loss(x, y), apart(x, y) + 0.3 * sf.LovaszLoss()(x, y), 1e-13)
    made = []
    monkeypatch.setattr(formula.Formula, "__init__", lambda *_: made.append(1))
    loss(x, y)
    assert not made
    monkeypatch.undo()
    loss.weights_by_name["dice"] = 0.0
    close(loss(x, y), sf.CrossEntropyLoss()(x, y) + 0.3 * sf.LovaszLoss()(x, y), 1e-13)
    loss.terms["cross_entropy"].label_smoothing = 0.5
    expected = sf.CrossEntropyLoss(label_smoothing=0.5)(x, y) + 0.3 * sf.LovaszLoss()(x, y)
    close(loss(x, y), expected, 1e-13)
    close(copy.deepcopy(loss)(x, y), expected, 1e-13)
    close(pickle.loads(pickle.dumps(loss))(x, y), expected, 1e-13)


def test_terms_that_read_the_logits_differently(calls):
    """Each way of reading them is one pass; the value is that of the sum."""
    x, y = problem("multiclass")
    y[0, 0] = -100
    loss = sf.CompoundLoss(
        {
            "dice": (0.5, sf.DiceLoss()),
            "one_vs_rest": (2.0, sf.FocalLoss(activation="sigmoid")),
            "iou": (0.7, sf.JaccardLoss()),
            "other_ignored": (0.3, sf.CrossEntropyLoss(ignore_index=-100, mode="multiclass")),
        }
    )
    value, terms = loss(x, y, return_terms=True)
    forward = sum(calls.values())
    assert forward == 3, calls
    assert list(terms) == ["dice", "one_vs_rest", "iou", "other_ignored"]
    expected = sum(weight * loss.terms[name](x, y) for name, weight in loss.weights_by_name.items())
    close(value, expected, 1e-13)
    for name, term in terms.items():
        close(term, loss.terms[name](x, y), 1e-13)
    _, grad = evaluate(loss, x, y)
    (wanted,) = torch.autograd.grad(
        sum(w * loss.terms[n](x.requires_grad_(), y) for n, w in loss.weights_by_name.items()), x
    )
    close(grad, wanted, 1e-12)


def test_top_k_inside_a_sum():
    """It needs the loss of every pixel, a pass of its own; the rest is still one pass."""
    x, y = problem("multiclass")
    loss = 0.5 * sf.TopKCrossEntropyLoss(k=20) + sf.DiceLoss() + 2 * sf.CrossEntropyLoss()
    value, terms = loss(x, y, return_terms=True)
    assert list(terms) == ["top_k_cross_entropy", "dice", "cross_entropy"]
    expected = 0.5 * sf.TopKCrossEntropyLoss(k=20)(x, y) + sf.DiceLoss()(x, y) + 2 * sf.CrossEntropyLoss()(x, y)
    close(value, expected, 1e-13)
    close(terms["top_k_cross_entropy"], sf.TopKCrossEntropyLoss(k=20)(x, y), 1e-13)
    assert "do not share a pass" in sf.explain(loss, x, y)
    assert torch.autograd.gradcheck(lambda x: loss(x, y), x.requires_grad_())


def test_more_pixel_terms_than_a_pass_holds():
    x, y = problem("binary")
    losses = [sf.FocalLoss(gamma=0.25 * i) for i in range(11)]
    value, grad = evaluate(sf.CompoundLoss(losses), x, y)
    alone = [evaluate(loss, x, y) for loss in losses]
    close(value, sum(v for v, _ in alone), 1e-13)
    close(grad, sum(g for _, g in alone), 1e-12)


def test_a_sum_of_sums_of_pixels():
    x, y = problem("multiclass")
    loss = sf.CrossEntropyLoss(reduction="sum") + sf.DiceLoss(reduction="sum")
    close(loss(x, y), sf.CrossEntropyLoss(reduction="sum")(x, y) + sf.DiceLoss(reduction="sum")(x, y), 1e-13)


def test_parameters_of_terms_are_found():
    loss = sf.DiceLoss() + 0.5 * sf.TLoss(nu_tilde=0.3)
    (parameter,) = loss.parameters()
    x, y = problem("binary")
    loss(x, y).backward()
    alone = sf.TLoss(nu_tilde=0.3)
    alone(x, y).backward()
    close(parameter.grad, 0.5 * alone.nu_tilde.grad.double(), 1e-6)
    assert set(loss.state_dict()) == {"terms.t.nu_tilde"}


def test_one_loss_in_two_sums():
    """Sharing a term shares its parameter, and nothing of one sum reaches the other."""
    x, y = problem("binary")
    t = sf.TLoss()
    first, second = t + sf.DiceLoss(), t + sf.JaccardLoss()
    close(first(x, y) - second(x, y), sf.DiceLoss()(x, y) - sf.JaccardLoss()(x, y), 1e-11)
    assert next(first.parameters()) is next(second.parameters())


def test_explain_names_what_else_runs():
    x, y = problem("multiclass")
    for loss in (sf.TopKCrossEntropyLoss(), sf.FocalLoss(reduction="none")):
        assert "the loss of every pixel" in sf.explain(loss, x, y)
    assert "distance_transform_edt" in sf.explain(sf.BoundaryLoss(), x, y)
    assert sf.explain(sf.DeepSupervisionLoss(), [x, x], y) == sf.explain(sf.DeepSupervisionLoss(), x, y)
    assert "pairwise_hausdorff" in sf.explain(sf.WeightedHausdorffLoss(), x[:, :1], [torch.zeros(1, 2)] * len(x))


def test_explain_names_the_one_pass():
    x, y = problem("multiclass")
    text = sf.explain(0.5 * sf.FocalLoss() + sf.DiceLoss(), x, y)
    assert "multiclass" in text and "softmax" in text and "focal(2)" in text and "tp" in text
    assert "one pass" in text


def test_half_precision_terms_are_float32():
    x, y = problem("multiclass", dtype=torch.float16)
    value, terms = (sf.DiceLoss() + sf.FocalLoss())(x, y, return_terms=True)
    assert value.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert same(value, sum(terms.values())) or abs(value - sum(terms.values())) < 1e-6


def test_a_loss_may_be_an_abstract_class_too():
    class Mine(sf.DiceLoss, abc.ABC):
        pass

    x, y = problem("multiclass")
    assert Mine()(x, y) == sf.DiceLoss()(x, y)
