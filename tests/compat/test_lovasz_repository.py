"""``segfuse.compat.lovasz`` against the formula of the paper, pixel by pixel."""

from __future__ import annotations

import itertools

import pytest
import torch
from against import Data

from segfuse.compat.lovasz import lovasz_hinge, lovasz_softmax

D = Data()


def extension(errors, positive):
    """sum_k e_(k) (J_k - J_(k-1)), errors sorted downwards (Berman et al. 2018, algorithm 1)."""
    order = sorted(range(len(errors)), key=lambda i: -float(errors[i]))
    total, last, true = 0.0, 0.0, float(positive.sum())
    hit, wrong = 0.0, 0.0
    for i in order:
        hit, wrong = hit + float(positive[i]), wrong + 1 - float(positive[i])
        jaccard = 1 - (true - hit) / (true + wrong)
        total += float(errors[i]) * (jaccard - last)
        last = jaccard
    return total


def hinge(z, y):
    return extension((1 - z * (2 * y - 1)).clamp(min=0).flatten(), y.flatten()) if len(z.flatten()) else 0.0


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


@pytest.mark.parametrize("ignore", [None, 255])
@pytest.mark.parametrize("per_image", [False, True])
def test_hinge(per_image, ignore):
    z, y = D.x[:, 0], D.multi[:, 0].long()
    y = y.clone()
    if ignore:
        y[0, :2], y[1] = 255, 255  # the second image has no pixel left
    groups = [(a[None], b[None]) for a, b in zip(z, y)] if per_image else [(z, y)]
    expected = mean(hinge(a[b != 255], b[b != 255].double()) for a, b in groups)
    found = lovasz_hinge(z, y, per_image=per_image, ignore=ignore)
    assert found.shape == () and float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ignore", [None, 255])
@pytest.mark.parametrize(("per_image", "classes"), [*itertools.product((False, True), ("present", "all", [0, 2]))])
def test_softmax(per_image, classes, ignore):
    p, y = D.x.softmax(1), (D.without_last if classes == "present" else D.labels).clone()
    if ignore:
        y[0, :2] = 255
    groups = [(a[None], b[None]) for a, b in zip(p, y)] if per_image else [(p, y)]

    def one(p, y):
        flat, labels = p.movedim(1, -1)[y != 255], y[y != 255]
        wanted = classes if isinstance(classes, list) else range(3)
        losses = [
            extension((flat[:, c] - (labels == c).double()).abs(), (labels == c).double())
            for c in wanted
            if classes != "present" or bool((labels == c).any())
        ]
        return mean(losses)

    found = lovasz_softmax(p, y, classes=classes, per_image=per_image, ignore=ignore)
    assert float(found) == pytest.approx(mean(one(a, b) for a, b in groups), rel=1e-12)


def test_sigmoid_output():
    p, y = D.x[:, 0].sigmoid(), D.multi[:, 0].long()
    expected = extension((p - y).abs().flatten(), y.double().flatten())
    assert float(lovasz_softmax(p, y, classes=[1])) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="only with 1 class"):
        lovasz_softmax(p, y)


def test_gradients_and_nothing_to_see():
    x = D.x[:, :, :2, :2].clone().requires_grad_()
    y = D.labels[:, :2, :2]
    assert torch.autograd.gradcheck(lambda x: lovasz_softmax(x.softmax(1), y), x)
    for value in (
        lovasz_hinge(x[:, 0], torch.full_like(y, 255), ignore=255),
        lovasz_softmax(x.softmax(1), torch.full_like(y, 255), ignore=255),
    ):
        assert value == 0
        (grad,) = torch.autograd.grad(value, x)
        assert not grad.any()
