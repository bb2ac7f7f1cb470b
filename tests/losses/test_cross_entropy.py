"""Cross-entropy: plain, weighted, balanced, hardest pixels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import segfuse as sf
from all_losses import problem
from by_hand import P, Y, slope
from compare import close, evaluate

LOG = [-math.log(v) for v in (0.8, 0.6, 0.1, 0.7)]  # the loss of every pixel of P, Y


def test_binary_by_hand(backend):
    loss = sf.CrossEntropyLoss(from_logits=False)
    close(loss(P, Y), sum(LOG) / 4, 1e-14)
    close(sf.CrossEntropyLoss(from_logits=False, reduction="sum")(P, Y), sum(LOG), 1e-14)
    close(slope(loss), torch.tensor([[[-1 / 0.8, 1 / 0.6, -1 / 0.1, 1 / 0.7]]]).double() / 4, 1e-7)


def test_beta_weighs_the_positives(backend):
    loss = sf.CrossEntropyLoss(from_logits=False, beta=3.0)
    close(loss(P, Y), (3 * LOG[0] + LOG[1] + 3 * LOG[2] + LOG[3]) / 4, 1e-14)


def test_soft_labels_by_hand(backend):
    y = torch.tensor([[[0.9, 0.25, 1.0, 0.0]]], dtype=torch.float64)
    expected = -(0.9 * math.log(0.8) + 0.1 * math.log(0.2) + 0.25 * math.log(0.4) + 0.75 * math.log(0.6))
    expected += LOG[2] + LOG[3]
    close(sf.CrossEntropyLoss(from_logits=False)(P, y), expected / 4, 1e-14)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weight", [None, [0.2, 3.0, 1.0]])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_multiclass_is_torch(backend, smoothing, weight, reduction):
    x, y = problem("multiclass")
    y[0, 0, :3] = -100
    loss = sf.CrossEntropyLoss(class_weight=weight, label_smoothing=smoothing, reduction=reduction)

    def theirs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        w = None if weight is None else torch.tensor(weight, dtype=x.dtype)
        return F.cross_entropy(x, y, w, label_smoothing=smoothing, reduction=reduction)

    for found, expected in zip(evaluate(loss, x, y), evaluate(theirs, x, y)):
        close(found, expected, 1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_probabilities_are_torch(backend, reduction):
    x, y = problem("multiclass", soft=True)
    expected = evaluate(lambda x, y: F.cross_entropy(x, y, reduction=reduction), x, y)
    for a, b in zip(evaluate(sf.CrossEntropyLoss(reduction=reduction), x, y), expected):
        close(a, b, 1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_multilabel_is_torch(backend, reduction):
    x, y = problem("multilabel", soft=True)
    beta = [0.5, 1.0, 4.0]

    def theirs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        w = torch.tensor(beta, dtype=x.dtype)[:, None, None]
        return F.binary_cross_entropy_with_logits(x, y, pos_weight=w, reduction=reduction)

    loss = sf.CrossEntropyLoss(mode="multilabel", beta=beta, reduction=reduction)
    for a, b in zip(evaluate(loss, x, y), evaluate(theirs, x, y)):
        close(a, b, 1e-12)


def test_normalize():
    """Valid pixels, the weights of the pixels, or all of them."""
    w = torch.tensor([[0.5, 2.0, 0.0, 3.0]], dtype=torch.float64)
    y = torch.tensor([[[1, 0, 1, -100]]])
    total = 0.5 * LOG[0] + 2 * LOG[1]
    for normalize, by in ((None, 3), ("valid", 3), ("weight", 2.5), ("numel", 4)):
        close(sf.CrossEntropyLoss(from_logits=False, normalize=normalize)(P, y, weight_map=w), total / by, 1e-14)
    x = torch.log(torch.tensor([[[0.7, 0.2], [0.2, 0.3], [0.1, 0.5]]], dtype=torch.float64))
    y, w = torch.tensor([[1, 2]]), torch.tensor([[3.0, 0.5]])
    a = [0.1, 4.0, 2.0]
    total = 3 * 4 * -math.log(0.2) + 0.5 * 2 * -math.log(0.5)
    for normalize, by in ((None, 13), ("valid", 2), ("weight", 13), ("numel", 2)):
        close(sf.CrossEntropyLoss(class_weight=a, normalize=normalize)(x, y, weight_map=w), total / by, 1e-14)


def test_balanced_class_weights():
    """Valid pixels / (classes present times pixels of the class); an absent class weighs 0."""
    x = torch.randn(1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0, 0, 3, 1, -100]])
    w = torch.tensor([4 / (3 * 2), 4 / 3, 0.0, 4 / 3], dtype=torch.float64)
    close(sf.CrossEntropyLoss(class_weight="balanced")(x, y), F.cross_entropy(x, y, w), 1e-13)


def test_confident_pixels_keep_their_digits(backend):
    """log1p of the other classes, not a difference of logarithms."""
    x = torch.tensor([[[30.0], [0.0], [1.0]]])
    expected = math.log1p(math.exp(-30) + math.exp(-29))
    value, grad = evaluate(sf.CrossEntropyLoss(), x, torch.tensor([[0]]))
    close(value, expected, 1e-6)
    close(grad[0, 0], torch.tensor([-expected]), 1e-6)
    value, grad = evaluate(sf.CrossEntropyLoss(), torch.tensor([[[40.0]]]), torch.tensor([[[1]]]))
    close(value, math.log1p(math.exp(-40)), 1e-6)
    close(grad, torch.tensor([[[-math.exp(-40)]]]), 1e-6)


def test_infinite_logits(backend):
    """A masked class has probability 0; as the target it costs infinitely much, with a finite gradient."""
    x = torch.tensor([[[0.0], [-torch.inf], [1.0]]])
    p = torch.softmax(x, 1)
    value, grad = evaluate(sf.CrossEntropyLoss(), x, torch.tensor([[2]]))
    close(value, -math.log(p[0, 2]), 1e-6)
    close(grad, p - torch.tensor([[[0.0], [0.0], [1.0]]]), 1e-6)
    value, grad = evaluate(sf.CrossEntropyLoss(), x, torch.tensor([[1]]))
    assert value == torch.inf
    close(grad, p - torch.tensor([[[0.0], [1.0], [0.0]]]), 1e-6)
    x = torch.tensor([[[torch.inf, -torch.inf, torch.inf]]])
    value, grad = evaluate(sf.CrossEntropyLoss(reduction="none"), x, torch.tensor([[[1, 0, 0]]]))
    assert value.flatten().tolist() == [0, 0, torch.inf]
    assert grad.flatten().tolist() == [0, 0, 1]


# ------------------------------------------------------------------------------------------- balanced


def test_balanced_by_hand(backend):
    loss = sf.BalancedCrossEntropyLoss(from_logits=False, beta=0.2)
    close(loss(P, Y), (0.2 * LOG[0] + 0.8 * LOG[1] + 0.2 * LOG[2] + 0.8 * LOG[3]) / 4, 1e-14)


def test_share_of_negatives(backend):
    """Of each sample, or of the batch; of each channel; of valid pixels."""
    p = torch.tensor([[[0.8, 0.4, 0.1, 0.3]], [[0.8, 0.4, 0.1, 0.3]]], dtype=torch.float64)
    y = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 1, -100]]])
    a = [-math.log(v) for v in (0.8, 0.6, 0.9, 0.7)]
    b = [-math.log(v) for v in (0.8, 0.4, 0.1)]
    sample = sf.BalancedCrossEntropyLoss(from_logits=False, beta_clip=0.01)
    first, second = 0.75 * a[0] + 0.25 * sum(a[1:]), 0.01 * sum(b)
    close(sample(p, y), (first + second) / 7, 1e-14)
    batch = sf.BalancedCrossEntropyLoss(from_logits=False, beta_scope="batch")
    close(batch(p, y), ((3 / 7) * (a[0] + sum(b)) + (4 / 7) * sum(a[1:])) / 7, 1e-14)
    p2, y2 = torch.cat([p, p.flip(-1)], 1), torch.cat([y, y.flip(0)], 1)
    both = sf.BalancedCrossEntropyLoss(from_logits=False, mode="multilabel")
    parts = sf.BalancedCrossEntropyLoss(from_logits=False, reduction="sum")
    close(both(p2, y2) * 14, parts(p2[:, :1], y2[:, :1]) + parts(p2[:, 1:], y2[:, 1:]), 1e-13)


@pytest.mark.parametrize("fill", [0, 1])
def test_an_empty_image_still_teaches(backend, fill):
    x, y = torch.zeros(1, 1, 4), torch.full((1, 1, 4), fill)
    value, grad = evaluate(sf.BalancedCrossEntropyLoss(), x, y)
    close(value, 1e-3 * math.log(2), 1e-6)
    close(grad, torch.full((1, 1, 4), (0.5 - fill) * 1e-3 / 4), 1e-6)
    value, grad = evaluate(sf.BalancedCrossEntropyLoss(beta_clip=0.0), x, y)
    assert value == 0 and not grad.any()


def test_a_number_balances_classes(backend):
    x, y = problem("multiclass")
    expected = F.cross_entropy(x, y, torch.tensor([0.8, 0.2, 0.2], dtype=x.dtype), reduction="none").mean()
    close(sf.BalancedCrossEntropyLoss(beta=0.2)(x, y), expected, 1e-13)


# ------------------------------------------------------------------------------------------- hardest pixels


@pytest.mark.parametrize(("k", "kept"), [(1e-3, 1), (10, 1), (49.9, 1), (50, 2), (75, 3), (100, 4)])
def test_top_k_by_hand(backend, k, kept):
    loss = sf.TopKCrossEntropyLoss(k=k, from_logits=False)
    close(loss(P, Y), sum(sorted(LOG, reverse=True)[:kept]) / kept, 1e-14)
    assert (slope(loss) != 0).sum() == kept


def test_top_k_counts_exactly():
    """floor(k M / 100) of M valid pixels."""
    for pixels in (7, 99, 1000, 12345):
        x = torch.arange(1, pixels + 1, dtype=torch.float64)[None, None]
        y = torch.zeros(1, 1, pixels, dtype=torch.long)
        for k in (0.7, 3.3, 10, 29, 57.3, 99.99):
            chosen = evaluate(sf.TopKCrossEntropyLoss(k=k), x, y)[1].count_nonzero()
            assert chosen == max(1, math.floor(pixels * k / 100)), (pixels, k)


def test_top_k_ties_go_to_the_lower_index(backend):
    x = torch.zeros(2, 1, 4)
    grad = evaluate(sf.TopKCrossEntropyLoss(k=50), x, torch.ones(2, 1, 4))[1]
    assert grad.flatten().tolist() == [-0.125] * 4 + [0] * 4
    grad = evaluate(sf.TopKCrossEntropyLoss(k=50, per_sample=True), x, torch.ones(2, 1, 4))[1]
    assert grad.flatten().tolist() == [-0.125, -0.125, 0, 0] * 2


def test_top_k_of_each_sample(backend):
    p = torch.cat([P, 1 - P])
    y = torch.cat([Y, Y])
    other = [-math.log(v) for v in (0.2, 0.4, 0.9, 0.3)]
    loss = sf.TopKCrossEntropyLoss(k=50, per_sample=True, from_logits=False)
    two = [sum(sorted(v, reverse=True)[:2]) / 2 for v in (LOG, other)]
    close(loss(p, y), sum(two) / 2, 1e-14)
    y[1] = -100
    close(loss(p, y), two[0] / 2, 1e-14)  # a sample without valid pixels is a sample with loss 0


def test_top_k_takes_the_weighted_values(backend):
    w = torch.tensor([[9.0, 1.0, 0.1, 1.0]], dtype=torch.float64)
    weighted = [9 * LOG[0], LOG[1], 0.1 * LOG[2], LOG[3]]
    loss = sf.TopKCrossEntropyLoss(k=50, from_logits=False)
    close(loss(P, Y, weight_map=w), (weighted[0] + weighted[1]) / 2, 1e-14)
    a = sf.TopKCrossEntropyLoss(k=25, class_weight=[1.0, 0.01])
    x = torch.log(torch.tensor([[[0.4, 0.9, 0.5, 0.7], [0.6, 0.1, 0.5, 0.3]]], dtype=torch.float64))
    close(a(x, Y[0]), -math.log(0.7), 1e-14)


def test_top_k_with_masks_of_every_shape(backend):
    x, y = problem("multilabel")
    mask = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    loss = sf.TopKCrossEntropyLoss(k=40, mode="multilabel")
    per = F.binary_cross_entropy_with_logits(x, y.double(), reduction="none")[mask.expand_as(x)]
    expected = per.sort(descending=True).values[: int(len(per) * 0.4)].mean()
    for m in (mask, mask[:, 0], mask.expand_as(x)):
        close(loss(x, y, mask=m), expected, 1e-13)


def test_background_of_the_hardest_pixels(backend):
    """None leaves it out where classes exclude each other, and there alone."""
    for mode, same_as in (("multiclass", False), ("multilabel", True)):
        x, y = problem(mode)
        found, expected = (
            evaluate(sf.TopKCrossEntropyLoss(k=30, mode=mode, include_background=include), x, y)
            for include in (None, same_as)
        )
        close(found[0], expected[0], 1e-14)
        close(found[1], expected[1], 1e-14)


def test_derivatives_at_logit_zero():
    """The slope of the logistic loss is 1/2 and its curvature 1/4 there, also under create_graph=True."""
    x = torch.zeros((1, 1, 2, 2), dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[[[0, 1], [1, 0]]]])
    (grad,) = torch.autograd.grad(sf.CrossEntropyLoss()(x, y), x, create_graph=True)
    torch.testing.assert_close(grad, (0.5 - y.double()) / 4)
    (curvature,) = torch.autograd.grad(grad.sum(), x)
    torch.testing.assert_close(curvature, torch.full_like(x, 1 / 16))
