"""Lovasz losses: values by hand, the limits they are named after, what counts, what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

import segfuse as sf
from all_losses import problem
from compare import close, evaluate, same

Z = torch.tensor([[[0.5, -2.0, 0.25, 3.0]]], dtype=torch.float64)
Y = torch.tensor([[[1, 0, 0, 0]]])


def test_hinge_by_hand(backend):
    """Errors 0.5, -1, 1.25, 4: the sorted first three are negative, negative, positive."""
    value, grad = evaluate(sf.LovaszLoss(), Z, Y)
    close(value, 4 * 1 / 2 + 1.25 * 1 / 6 + 0.5 * 1 / 3, 1e-14)
    close(grad, torch.tensor([[[-1 / 3, 0, 1 / 6, 1 / 2]]]), 1e-7)


def test_softmax_by_hand(backend):
    """Class 0 has errors 0.1 (its own), 0.6, 0.3; class 1 the same with two of its own."""
    p = torch.tensor([[[0.9, 0.6, 0.3], [0.1, 0.4, 0.7]]], dtype=torch.float64)
    y = torch.tensor([[0, 1, 1]])
    first = 0.6 * 1 / 2 + 0.3 * 1 / 6 + 0.1 * 1 / 3
    second = 0.6 * 1 / 2 + 0.3 * 1 / 2
    loss = sf.LovaszLoss(from_logits=False)
    value, grad = evaluate(loss, p, y)
    close(value, (first + second) / 2, 1e-14)
    close(grad, torch.tensor([[[-1 / 3, 1 / 2, 1 / 6], [0, -1 / 2, -1 / 2]]]) / 2, 1e-7)
    weighted = sf.LovaszLoss(from_logits=False, class_weight=[1.0, 3.0])
    close(weighted(p, y), (first + 3 * second) / 4, 1e-14)
    close(sf.LovaszLoss(from_logits=False, reduction="sum", class_weight=[1.0, 3.0])(p, y), first + 3 * second, 1e-14)
    close(sf.LovaszLoss(from_logits=False, reduction="none")(p, y), torch.tensor([first, second]).double(), 1e-7)


def test_it_is_the_jaccard_loss_of_hard_predictions(backend):
    """At probabilities 0 and 1 an extension has the value of what it extends."""
    random = torch.Generator().manual_seed(0)
    y, q = (torch.randint(0, 4, (2, 9, 11), generator=random) for _ in range(2))
    p = torch.nn.functional.one_hot(q, 4).movedim(-1, 1).double()
    both = [((q == c) & (y == c)).sum() / ((q == c) | (y == c)).sum() for c in range(4)]
    close(sf.LovaszLoss(from_logits=False)(p, y), 1 - sum(map(float, both)) / 4, 1e-6)


def test_which_classes_count(backend):
    """Class 2 is nowhere, class 1 in the first image only."""
    x, _ = problem("multiclass")
    x = torch.cat([x, x[:, :1] / 3], 1)
    y = torch.zeros(2, 5, 6, dtype=torch.long)
    y[0, 1:3] = 1
    y[:, 4] = 3
    each = sf.LovaszLoss(reduction="none", classes="all")(x, y)
    close(each[2], x.softmax(1)[:, 2].max(), 1e-13)  # an absent class: its largest probability
    close(sf.LovaszLoss()(x, y), each[[0, 1, 3]].mean(), 1e-13)
    close(sf.LovaszLoss(classes="all")(x, y), each.mean(), 1e-13)
    close(sf.LovaszLoss(classes=[1, 2])(x, y), each[[1, 2]].mean(), 1e-13)
    for include in (False, None):
        close(sf.LovaszLoss(include_background=include)(x, y), each[[1, 3]].mean(), 1e-13)
    close(sf.LovaszLoss(class_weight=[1.0, 2.0, 5.0, 4.0])(x, y), (each[0] + 2 * each[1] + 4 * each[3]) / 7, 1e-13)
    images = [sf.LovaszLoss()(x[n : n + 1], y[n : n + 1]) for n in (0, 1)]
    close(sf.LovaszLoss(per_image=True)(x, y), sum(images) / 2, 1e-13)
    grad = evaluate(sf.LovaszLoss(per_image=True, from_logits=False), x.softmax(1), y)[1]
    assert not grad[1, 1:3].any() and grad[0, 1].any()


def test_an_absent_class_pushes_its_largest_probability(backend):
    p = torch.tensor([[[0.5, 0.2, 0.2], [0.5, 0.8, 0.8]]], dtype=torch.float64)
    grad = evaluate(sf.LovaszLoss(classes="all", from_logits=False), p, torch.zeros(1, 3, dtype=torch.long))[1]
    assert grad[0, 1].tolist() == [0, 0.5, 0]  # the first of two


def test_channels_of_a_multilabel_problem(backend):
    x, y = problem("multilabel")
    alone = [sf.LovaszLoss(mode="binary")(x[:, c : c + 1], y[:, c : c + 1]) for c in range(3)]
    close(sf.LovaszLoss(mode="multilabel")(x, y), sum(alone) / 3, 1e-13)
    close(sf.LovaszLoss(mode="multilabel", classes=[0, 2])(x, y), (alone[0] + alone[2]) / 2, 1e-13)
    for include, expected in ((None, sum(alone) / 3), (False, (alone[1] + alone[2]) / 2)):
        close(sf.LovaszLoss(mode="multilabel", include_background=include)(x, y), expected, 1e-13)
        close(sf.LovaszLoss(mode="binary", include_background=include)(x[:, :1], y[:, :1]), alone[0], 1e-13)
    y[:, 1] = 0  # an empty channel still counts
    close(
        sf.LovaszLoss(mode="multilabel", reduction="none")(x, y)[:, 1],
        (1 + x[:, 1].flatten(1)).amax(1).clamp(min=0),
        1e-13,
    )


@pytest.mark.parametrize("infinite", [torch.inf, -torch.inf])
def test_infinite_scores(backend, infinite):
    x = torch.full((1, 1, 4), infinite)
    value, grad = evaluate(sf.LovaszLoss(), x, torch.tensor([[[1, 1, 0, 0]]]))
    assert value == torch.inf
    assert grad.isfinite().all() and grad.any()
    value, grad = evaluate(sf.LovaszLoss(), x, torch.full((1, 1, 4), int(infinite > 0)))
    assert value == 0 and not grad.any()


def test_nan_does_not_leave_its_problem(backend):
    x, y = problem("binary")
    expected = evaluate(sf.LovaszLoss(reduction="none"), x, y)
    x[0, 0, 2, 3] = torch.nan
    value, grad = evaluate(sf.LovaszLoss(reduction="none"), x, y)
    assert value[0].isnan() and grad[0, 0, 2, 3].isnan()
    assert same(value[1], expected[0][1]) and same(grad[1], expected[1][1])


def differences(order: Tensor, positive: Tensor, dtype: torch.dtype) -> Tensor:
    """J_k - J_(k-1) of every pixel, from J in `dtype`; for int64 over a common denominator, so that it is exact."""
    y = positive[order].long()
    G, F, B = y.sum(), y.cumsum(0), (1 - y).cumsum(0)
    above, below = torch.cat([G[None], G - F]), torch.cat([G[None], G + B])
    if dtype == torch.int64:
        steps = (above[:-1] * below[1:] - above[1:] * below[:-1]).double() / (below[:-1] * below[1:]).double()
    else:
        steps = torch.diff(1 - above.to(dtype) / below.to(dtype)).double()
    return torch.empty_like(steps).scatter_(0, order, steps)


@pytest.mark.parametrize("pixels", [2**20, 2**22])
def test_weights_keep_their_digits(pixels):
    """Differences of J in float32 lose them, here more than 1 % of half the weights. And the order is the exact one."""
    random = torch.Generator().manual_seed(0)
    y = torch.rand(1, 1, pixels, generator=random) < 0.3
    sign = 2 * y.float() - 1
    x = sign * (1 - 2 * torch.randn(1, 1, pixels, generator=random).abs())  # every error is positive
    grad = evaluate(sf.LovaszLoss(), x, y)[1].double().flatten().abs()
    order = (1 - x * sign).flatten().sort(descending=True, stable=True).indices
    exact = differences(order, y.flatten(), torch.int64)
    seen = exact > 0
    off = ((grad - exact).abs() / exact)[seen]
    assert off.max() < 1.2e-7
    assert not grad[~seen].any()
    lost = ((differences(order, y.flatten(), torch.float32) - exact).abs() / exact)[seen]
    assert lost.median() > 1e-2


def test_its_own_pass_in_a_sum(calls: Counter[str]):
    x, y = problem("multiclass")
    loss = sf.LovaszLoss() + 0.5 * sf.DiceLoss() + sf.CrossEntropyLoss()
    value, terms = loss(x.requires_grad_(), y, return_terms=True)
    value.backward()
    assert list(terms) == ["lovasz", "dice", "cross_entropy"]
    assert calls["lovasz_extension_forward"] == calls["formula_forward"] == 1
    close(value.detach(), terms["lovasz"] + 0.5 * terms["dice"] + terms["cross_entropy"], 1e-13)
    assert "lovasz_extension" in sf.explain(loss, x, y)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: sf.LovaszLoss(classes="some"), ("classes", "'some'", "Try:")),
        (lambda x, y: sf.LovaszLoss(classes=[]), ("classes", "Try:")),
        (lambda x, y: sf.LovaszLoss(classes=[0, 3])(x, y), ("0 to 2", "[0, 3]", "Try:")),
        (lambda x, y: sf.LovaszLoss()(x, y, weight_map=torch.ones(2, 5, 6)), ("weight_map", "mask=", "Try:")),
        (lambda x, y: sf.LovaszLoss()(x, y + 1), ("3", "0 to 2", "Try:")),
        (lambda x, y: sf.LovaszLoss()(x, x.detach().softmax(1)), ("hard target", "> 0.5", "Try:")),
        (lambda x, y: sf.LovaszLoss(class_weight=[1.0])(x, y), ("class_weight", "3", "Try:")),
    ],
)
def test_what_is_refused(call, words):
    x, y = problem("multiclass")
    with pytest.raises(ValueError) as error:
        call(x, y)
    assert all(word in str(error.value) for word in words), error.value
