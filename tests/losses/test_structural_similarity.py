"""SSIM and CMSSL: values by hand, and what is their own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import segfuse as sf
from all_losses import problem
from compare import close, evaluate

X, Y = problem("binary", (24, 26))


def gauss(size: int, sigma: float, axes: int) -> torch.Tensor:
    k = torch.arange(size, dtype=torch.float64) - size // 2
    g = torch.exp(-k * k / (2 * sigma**2))
    g = g / g.sum()
    kernel = g
    for _ in range(axes - 1):
        kernel = kernel[..., None] * g
    return kernel[None, None]


def similarity(p: torch.Tensor, y: torch.Tensor, size: int, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean SSIM and mean of its second factor, of every image, over valid windows."""
    axes = p.ndim - 2
    conv, w = (F.conv1d, F.conv2d, F.conv3d)[axes - 1], gauss(size, sigma, axes)
    mp, my, pp, yy, py = (conv(x, w) for x in (p, y, p * p, y * y, p * y))
    second = (2 * (py - mp * my) + 9e-4) / (pp - mp * mp + yy - my * my + 9e-4)
    first = (2 * mp * my + 1e-4) / (mp * mp + my * my + 1e-4)
    return (first * second).flatten(1).mean(1), second.flatten(1).mean(1)


@pytest.mark.parametrize("spatial", [(30,), (24, 26), (13, 12, 15)])
def test_ssim_by_convolutions(backend, spatial):
    x, y = problem("binary", spatial)
    expected = 1 - similarity(x.sigmoid(), y.double(), 11, 1.5)[0].mean()
    close(evaluate(sf.SSIMLoss(), x, y)[0], expected, 1e-12)


def test_ssim_of_several_classes(backend):
    x, y = problem("multiclass", (24, 26))
    p, hot = x.softmax(1), F.one_hot(y, 3).movedim(-1, 1).double()
    expected = torch.stack([1 - similarity(p[:, c : c + 1], hot[:, c : c + 1], 7, 2.0)[0] for c in range(3)], 1)
    close(evaluate(sf.SSIMLoss(window=7, sigma=2.0, reduction="none"), x, y)[0], expected, 1e-12)
    weighted = sf.SSIMLoss(window=7, sigma=2.0, class_weight=[1.0, 2.0, 5.0], include_background=False)
    close(evaluate(weighted, x, y)[0], (expected[:, 1:] @ torch.tensor([2.0, 5.0]).double()).mean() / 7, 1e-12)


def test_two_scales(backend):
    x, y = problem("binary", (26, 29))
    p, y2 = x.sigmoid(), y.double()
    fine = similarity(p, y2, 7, 1.5)[1]
    coarse = similarity(F.avg_pool2d(p, 2), F.avg_pool2d(y2, 2), 7, 1.5)[0]
    expected = (1 - fine.clamp(min=0) ** 0.3 * coarse.clamp(min=0) ** 0.7).mean()
    close(evaluate(sf.SSIMLoss(window=7, scale_weights=(0.3, 0.7)), x, y)[0], expected, 1e-12)


def test_five_scales():
    x, y = problem("binary", (180, 190), torch.float32)
    x = x + 6 * y - 3
    value, grad = evaluate(sf.SSIMLoss(scale_weights="wang"), x, y)
    assert 0 < value < 1 and grad.isfinite().all() and grad.any()
    explicit = sf.SSIMLoss(scale_weights=(0.0448, 0.2856, 0.3001, 0.2363, 0.1333))
    close(evaluate(explicit, x, y)[0], value, 1e-7)


def test_a_perfect_prediction_has_no_loss(backend):
    _, y = problem("binary", (24, 26))
    for loss in (
        sf.SSIMLoss(from_logits=False),
        sf.SSIMLoss(from_logits=False, padding="zeros"),
        sf.CMSSLLoss(from_logits=False),
    ):
        value, grad = evaluate(loss, y.double(), y)
        assert abs(float(value)) < 1e-12 and grad.isfinite().all()


def test_e_max_is_0_where_everything_agrees(backend):
    x = torch.full((1, 1, 8, 8), -torch.inf)
    value, grad = evaluate(sf.CMSSLLoss(), x, torch.zeros(1, 1, 8, 8))
    assert value == 0 and not grad.any()


def test_weights_of_pixels_and_of_cross_entropy(backend):
    w = torch.rand(X.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    pixels = evaluate(sf.CMSSLLoss(reduction="none"), X, Y)[0]
    close(evaluate(sf.CMSSLLoss(reduction="none"), X, Y, weight_map=w)[0], w * pixels, 1e-12)
    selected = evaluate(sf.CMSSLLoss(reduction="sum"), X, Y)[0] / evaluate(sf.CMSSLLoss(), X, Y)[0]
    close(evaluate(sf.CMSSLLoss(), X, Y, weight_map=w)[0], (w * pixels).sum() / selected, 1e-12)
    mixed = 0.3 * F.binary_cross_entropy_with_logits(X, Y.double()) + 0.7 * pixels.sum() / selected
    close(evaluate(sf.CMSSLLoss(lambda_ce=0.3), X, Y)[0], mixed, 1e-12)


def test_a_fixed_threshold_and_scopes(backend):
    """beta times the largest e of the batch is a threshold like any other."""
    pixels = evaluate(sf.CMSSLLoss(reduction="none", threshold=0.0), X, Y)[0]
    e = pixels / F.binary_cross_entropy_with_logits(X, Y.double(), reduction="none")
    value = evaluate(sf.CMSSLLoss(beta=0.2), X, Y)[0]
    close(evaluate(sf.CMSSLLoss(threshold=0.2 * float(e.max())), X, Y)[0], value, 1e-12)
    f = e > 0.2 * e.amax((1, 2, 3), keepdim=True)
    close(evaluate(sf.CMSSLLoss(beta=0.2, e_max_scope="sample"), X, Y)[0], (pixels * f).sum() / f.sum(), 1e-12)


def test_an_ignored_pixel_is_like_the_padding(backend):
    x, y = problem("binary", (6, 7))
    for loss in (sf.CMSSLLoss(), sf.SSIMLoss(window=5, padding="zeros")):
        value, grad = evaluate(loss, x, y)
        wide, ignored = F.pad(x, [2, 3, 1, 2], value=torch.nan), F.pad(y, [2, 3, 1, 2], value=-100)
        found = evaluate(loss, wide, ignored)
        close(found[0], value, 1e-12)
        close(found[1][..., 1:-2, 2:-3], grad, 1e-11)


def test_valid_windows_count_by_their_centre(backend):
    x, y = problem("binary", (9, 9))
    mask = torch.zeros(2, 9, 9)
    mask[:, 0] = 1  # no window has its centre there
    for loss in (sf.SSIMLoss(window=5), sf.CMSSLLoss(window=5, padding="valid")):
        value, grad = evaluate(loss, x, y, mask=mask)
        assert value == 0 and not grad.any()


@pytest.mark.parametrize(
    ("loss", "shape", "parts"),
    [
        (sf.SSIMLoss(), (1, 1, 8, 20), ("11", "(8, 20)", "window=7")),
        (sf.CMSSLLoss(window=9, padding="valid"), (1, 1, 8, 20), ("9", "(8, 20)")),
        (sf.CMSSLLoss(), (1, 1, 3, 3, 3, 3), ("one to three", "(3, 3, 3, 3)")),
        (sf.CMSSLLoss(), (4, 1), ("one to three",)),
        (sf.CMSSLLoss(window=(3, 3)), (1, 1, 5, 5, 5), ("per spatial axis",)),
        (sf.SSIMLoss(window=3, scale_weights="wang"), (1, 1, 20, 20), ("window", "valid")),
        (sf.SSIMLoss(window=3, padding="zeros", scale_weights="wang"), (1, 1, 9, 20), ("scale 5", "length 4")),
        (sf.SSIMLoss(window=3, class_weight=[1.0, 2.0]), (1, 1, 9, 9), ("class_weight", "1 classes")),
    ],
)
def test_images_that_do_not_fit(loss, shape, parts):
    with pytest.raises(ValueError) as error:
        loss(torch.zeros(shape), torch.zeros(shape))
    assert all(part in str(error.value) for part in (*parts, "Try: "))


@pytest.mark.parametrize(
    ("cls", "settings", "part"),
    [
        (sf.SSIMLoss, {"window": 4}, "odd"),
        (sf.SSIMLoss, {"sigma": 0}, "sigma"),
        (sf.SSIMLoss, {"kernel": "disk"}, "disk"),
        (sf.SSIMLoss, {"padding": "same"}, "same"),
        (sf.SSIMLoss, {"scale_weights": "ms"}, "scale_weights"),
        (sf.SSIMLoss, {"k1": -1.0}, "k1"),
        (sf.CMSSLLoss, {"window": (3, 2)}, "odd"),
        (sf.CMSSLLoss, {"beta": 1.5}, "beta"),
        (sf.CMSSLLoss, {"e_max_scope": "image"}, "e_max_scope"),
        (sf.CMSSLLoss, {"threshold": math.nan}, "threshold"),
        (sf.CMSSLLoss, {"lambda_ce": 2.0}, "lambda_ce"),
        (sf.CMSSLLoss, {"activation": "relu"}, "activation"),
    ],
)
def test_wrong_settings(cls, settings, part):
    with pytest.raises(ValueError, match=part) as error:
        cls(**settings)
    assert "Try: " in str(error.value)


@pytest.mark.parametrize(
    ("loss", "x", "y", "named"),
    [
        (sf.CMSSLLoss(), torch.zeros(1, 3, 6, 6), torch.full((1, 6, 6), 3), "got 3"),
        (sf.SSIMLoss(window=3), torch.zeros(1, 1, 6, 6), torch.full((1, 1, 6, 6), 2), "got 2"),
    ],
)
def test_a_wrong_label_is_named(backend, loss, x, y, named):
    if backend == "cuda":  # which does not wait for its kernels
        assert loss(x, y).isnan()
        return
    with pytest.raises(ValueError, match=named):
        loss(x, y)


def test_terms_are_the_value():
    for loss in (sf.SSIMLoss, sf.CMSSLLoss):
        value, terms = loss(reduction="none")(X, Y, return_terms=True)
        assert all(torch.equal(term, value) for term in terms.values())


def test_explain_names_the_path():
    assert "fused sweeps" in sf.explain(sf.SSIMLoss(), X, Y)
    assert "local_moments" in sf.explain(sf.CMSSLLoss(reduction="none"), X, Y)
    assert "ssim" in sf.explain(sf.SSIMLoss() + sf.DiceLoss(), X, Y)


def test_means_of_the_target_are_not_labels(backend):
    """A coarse pixel of mean 0 is not ignored because label 0 is."""
    x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    y = torch.randint(1, 3, (1, 12, 12), generator=torch.Generator().manual_seed(1))  # no pixel has label 0
    found, expected = (sf.SSIMLoss(window=3, scale_weights=(0.5, 0.5), ignore_index=label)(x, y) for label in (0, -100))
    assert torch.equal(found, expected)
