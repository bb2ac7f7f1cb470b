"""Hausdorff losses."""

from __future__ import annotations

import pytest
import torch

import segfuse as sf
from all_losses import problem
from by_hand import slope
from compare import close, evaluate
from hard_pairs import blobs

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


# ------------------------------------------------------------------------------- erosions and balls

LOSSES = (sf.HausdorffERLoss(), sf.HausdorffCVLoss(radii=(1, 2)))
IDS = [type(loss).__name__ for loss in LOSSES]


def test_erosion_by_hand(backend):
    """A wrong 3 x 3 square: its centre has mean 1, its edges 4/5, its corners 3/5; less 1/2, twice."""
    p, y = torch.zeros(1, 1, 5, 5).double(), torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    y[..., 1:4, 1:4] = 1
    loss = sf.HausdorffERLoss(alpha=0.5, erosions=1, norm="double", from_logits=False)
    close(loss(p, y), (1 + 4 * 0.6 + 4 * 0.2) / 25, 1e-14)
    both = sf.HausdorffERLoss(alpha=0.5, erosions=2, norm="double", from_logits=False)
    second = 2 * ((1 + 4 * 0.6) / 5 - 0.5) + 4 * 2 * ((1 + 0.6 + 2 * 0.2) / 5 - 0.5) * 0  # edges: 2/5 is below 1/2
    close(both(p, y), (1 + 4 * 0.6 + 4 * 0.2 + 2**0.5 * second) / 25, 1e-14)


def test_deep_errors_cost_more():
    """Of two errors of the same area the compact one is the deeper."""
    y = torch.zeros(1, 1, 40, 40, dtype=torch.uint8)
    square, line = torch.full((2, 1, 1, 40, 40), -9.0)
    square[..., 10:20, 10:20] = 9
    line[..., 5:7, :] = line[..., 15, :20] = 9
    assert (square > 0).sum() == (line > 0).sum()
    for loss in (sf.HausdorffERLoss(norm="double"), sf.HausdorffCVLoss(radii=(1, 2))):
        assert loss(square, y) > 1.3 * loss(line, y)


def test_circles_by_hand(backend):
    """One pixel, radius 1: w_f = f(4/5), w_e = 0 beside an object of one pixel; its own ball is outside by 4/5."""
    p, y = torch.full((1, 1, 3, 3), 0.25).double(), torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    y[..., 1, 1] = 1
    centre = 0.75**2 * (0.3 * 0.25 + 0.5)  # w_f: 4/5 background of y; w_e: all of the ball predicted background
    edges = 4 * 0.25**3 * 0.1  # 3/5 background of y, inside the image
    corners = 4 * 0.25**3 * 0.1
    loss = sf.HausdorffCVLoss(alpha=3.0, radii=(1,), from_logits=False)
    close(loss(p, y), (centre + edges + corners) / 9, 1e-13)


def test_background_is_left_out_of_classes_that_exclude_each_other(backend):
    x, y = problem("multiclass", (8, 9))
    hot = torch.nn.functional.one_hot(y, 3).movedim(-1, 1)
    for loss in (sf.HausdorffERLoss(erosions=2), sf.HausdorffCVLoss(radii=(1, 2))):
        options = {"mode": "multilabel", "from_logits": False}
        channels = type(loss)(**{**options, **_own(loss)})
        p = torch.softmax(x, 1)
        close(loss(x, y), channels(p[:, 1:], hot[:, 1:]), 1e-13)
        every = type(loss)(include_background=True, **_own(loss))
        close(every(x, y), channels(p, hot), 1e-13)


def _own(loss):
    return {"erosions": loss.erosions} if isinstance(loss, sf.HausdorffERLoss) else {"radii": loss.radii}


def test_argmax_and_threshold_differ_where_no_class_has_half():
    x, y = problem("multiclass", (8, 9))
    values = [evaluate(sf.HausdorffCVLoss(radii=(1, 2), hard=hard), 0.3 * x, y)[0] for hard in ("threshold", "argmax")]
    assert values[0] != values[1]
    with pytest.raises(ValueError, match="hard='threshold'"):
        sf.HausdorffCVLoss(hard="argmax")(*problem("binary"))


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_volumes_and_images_of_one_column(loss, backend):
    for shape in ((1, 1, 12, 13, 14), (2, 1, 1, 30), (2, 1, 30, 1), (1, 1, 9, 1, 9)):
        x, y = blobs(shape)
        value, grad = evaluate(loss, x.double(), y)
        assert value.isfinite() and grad.isfinite().all()
    assert evaluate(loss, *blobs((1, 1, 24, 23, 22)))[1].any()


@pytest.mark.parametrize("loss", [*LOSSES, sf.WeightedHausdorffLoss()], ids=[*IDS, "WeightedHausdorffLoss"])
def test_soft_targets_are_refused(loss):
    x, y = problem("binary")
    with pytest.raises(ValueError, match=r"hard target.*0\.5.*Try: "):
        loss(x, 0.5 * y)
    x, y = problem("multiclass", soft=True)
    with pytest.raises(ValueError, match=r"hard target.*Try: target\.argmax"):
        loss(x, y)
    x, y = problem("multiclass")
    with pytest.raises(ValueError, match=r"one class per pixel|of which a pixel has one"):
        loss(x, torch.zeros_like(x))
    for wrong in (7, -1):
        with pytest.raises(ValueError, match=f"got {wrong} at"):
            loss(x, torch.where(y == 0, wrong, y))
    for shape in ((2, 1), (1, 1, 2, 2, 2, 2)):
        with pytest.raises(ValueError, match="1 to 3 spatial axes"):
            loss(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_in_a_sum_with_a_fused_loss(loss):
    x, y = problem("binary", (9, 9))
    parts = [evaluate(part, x, y) for part in (sf.DiceLoss(), loss)]
    value, grad = evaluate(sf.DiceLoss() + 0.5 * loss, x, y)
    close(value, parts[0][0] + 0.5 * parts[1][0], 1e-13)
    close(grad, parts[0][1] + 0.5 * parts[1][1], 1e-12)


@pytest.mark.parametrize("loss", [*LOSSES, sf.WeightedHausdorffLoss()], ids=[*IDS, "WeightedHausdorffLoss"])
def test_explained(loss, backend):
    x, y = problem("multiclass")
    assert f"{loss.op} on {backend}" in sf.explain(loss, x, y)
    assert f"{loss.op} on {backend}" in sf.explain(sf.DiceLoss() + loss, x, y)
