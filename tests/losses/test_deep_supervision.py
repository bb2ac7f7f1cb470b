"""Deep supervision: lists, weights, resized targets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import segfuse as sf
from segfuse.losses.deep_supervision import nearest


def heads(classes=3, sizes=((8, 10), (4, 5), (3, 2)), n=2):
    r = torch.Generator().manual_seed(0)
    x = [torch.randn((n, classes, *s), generator=r, dtype=torch.float64).requires_grad_() for s in sizes]
    return x, torch.randint(0, classes, (n, *sizes[0]), generator=r)


def test_sum_of_the_criterion():
    x, y = heads()
    criterion = sf.DiceLoss() + sf.FocalLoss()
    targets = [y, *(nearest(y, z.shape[2:]) for z in x[1:])]
    for weights, factors in (("half", (1, 0.5, 0.25)), ("equal", (1, 1, 1)), ((0.2, 0.7, 0.1), (0.2, 0.7, 0.1))):
        loss = sf.DeepSupervisionLoss(criterion, weights=weights)
        expected = sum(w * criterion(a, b) for w, a, b in zip(factors, x, targets))
        torch.testing.assert_close(loss(x, y), expected)
        torch.testing.assert_close(loss(tuple(x), targets), expected)
        value, terms = loss(x, y, return_terms=True)
        assert list(terms) == ["output_0", "output_1", "output_2"]
        torch.testing.assert_close(value.detach(), sum(w * t for w, t in zip(factors, terms.values())))


def test_one_output_is_the_criterion():
    x, y = heads()
    loss = sf.DeepSupervisionLoss(sf.DiceLoss())
    torch.testing.assert_close(loss(x[0], y), sf.DiceLoss()(x[0], y))
    assert list(loss(x[0], y, return_terms=True)[1]) == ["criterion"]


def test_stacked_outputs():
    r = torch.Generator().manual_seed(0)
    x = torch.randn((2, 4, 3, 5, 6), generator=r)
    y = torch.randint(0, 3, (2, 5, 6), generator=r)
    expected = sf.DeepSupervisionLoss()(list(x.unbind(1)), y)
    torch.testing.assert_close(sf.DeepSupervisionLoss(stacked=True)(x, y), expected)


def test_weight_zero_stays_in_the_graph():
    x, y = heads()
    with torch.no_grad():
        x[2].fill_(torch.nan)  # whatever it holds
    sf.DeepSupervisionLoss(sf.DiceLoss(), weights=(1.0, 0.5, 0.0))(x, y).backward()
    assert x[2].grad is not None and not x[2].grad.any()
    assert x[1].grad.any()


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("size", [(4, 5), (3, 2), (16, 7), (1, 1), (11, 13)])
def test_nearest(mode, size):
    y = torch.arange(8 * 10, dtype=torch.float64).reshape(1, 1, 8, 10)
    expected = F.interpolate(y, size=size, mode=mode)
    torch.testing.assert_close(nearest(y, size, mode == "nearest-exact"), expected)
    labels = y.to(torch.uint8)
    assert nearest(labels, size, mode == "nearest-exact").dtype == torch.uint8


def test_maps_and_ignored_pixels_are_resized():
    x, y = heads()
    r = torch.Generator().manual_seed(1)
    weight, mask = torch.rand(y.shape, generator=r), torch.rand(y.shape, generator=r) < 0.7
    y[:, :2] = -100
    loss = sf.DeepSupervisionLoss(sf.CrossEntropyLoss(), resize="nearest")
    expected = sum(
        0.5**i
        * sf.CrossEntropyLoss()(
            z,
            *(nearest(t, z.shape[2:], False) for t in (y,)),
            weight_map=nearest(weight, z.shape[2:], False),
            mask=nearest(mask, z.shape[2:], False),
        )
        for i, z in enumerate(x)
    )
    torch.testing.assert_close(loss(x, y, weight_map=weight, mask=mask), expected)


def test_function():
    x, y = heads()
    found = sf.functional.deep_supervision_loss(x, y, criterion=sf.DiceLoss(), weights=[1.0, 0.0, 2.0])
    torch.testing.assert_close(found, sf.DeepSupervisionLoss(sf.DiceLoss(), weights=[1.0, 0.0, 2.0])(x, y))


def test_errors():
    x, y = heads()
    loss = sf.DeepSupervisionLoss(sf.DiceLoss(), weights=(1.0, 0.5))
    for call, text in (
        (lambda: loss(x, y), "2 weights and 3 outputs"),
        (lambda: loss(x[:2], [y]), "2 outputs and 1 targets"),
        (lambda: loss([], y), "0 outputs"),
        (lambda: loss(x[0], [y, y]), "one output and 2 targets"),
        (lambda: sf.DeepSupervisionLoss(weights="other"), "'half', 'equal'"),
        (lambda: sf.DeepSupervisionLoss(weights=(-1.0,)), "weights must be"),
        (lambda: sf.DeepSupervisionLoss(resize="linear"), "nearest-exact"),
        (lambda: sf.DeepSupervisionLoss(sf.DiceLoss(reduction="none")), "reduction"),
    ):
        with pytest.raises(ValueError, match=text) as caught:
            call()
        assert "Try:" in str(caught.value)
    with pytest.raises(TypeError, match="must be a loss"):
        sf.DeepSupervisionLoss(torch.nn.MSELoss())
    assert "weights=(1.0, 0.5)" in repr(loss) and "DiceLoss" in repr(loss)
