"""``segfuse.compat.kornia`` against the installed kornia."""

from __future__ import annotations

import itertools

import pytest
import torch
from against import Data, agree, both_raise, outcome, peer, same_signature

from segfuse.compat import kornia as ours

theirs = peer("kornia", "losses")

pytestmark = pytest.mark.filterwarnings("ignore")

D = Data()
WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
IGNORED = torch.where(D.ignored == 255, -100, D.ignored)
NOTHING = IGNORED.clone()
NOTHING[0] = -100  # a sample without a pixel
TARGETS = {"labels": D.labels, "absent": D.without_last, "ignored": IGNORED, "nothing": NOTHING}
REDUCTIONS = ("mean", "sum", "none")
targets = pytest.mark.parametrize("kind", TARGETS)


def compare(name, options, x, *rest, tol=1e-6):
    try:
        agree(getattr(theirs, name)(**options), getattr(ours, name)(**options), x, *rest, tol=tol)
    except AssertionError as error:
        raise AssertionError(f"{name}({options}): {error}") from None


@pytest.mark.parametrize("name", ours.__all__)
def test_signatures(name):
    same_signature(getattr(theirs, name), getattr(ours, name))


@targets
def test_regions(kind):
    y = TARGETS[kind]
    some = torch.tensor([0.0, 1, 0], dtype=torch.float64)
    for average, weight, eps in itertools.product(("micro", "macro"), (None, WEIGHT, some), (1e-8, 0.1)):
        compare("DiceLoss", {"average": average, "weight": weight, "eps": eps}, D.x, y)
    compare("TverskyLoss", {"alpha": 0.2, "beta": 0.9}, D.x, y)
    compare("TverskyLoss", {"alpha": 0.2, "beta": 0.9, "eps": 0.1, "ignore_index": 1}, D.x, y.clamp(min=0))


@targets
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_focal(kind, reduction):
    for alpha, gamma, weight in itertools.product((None, 0.3), (2.0, 0.0, 0.5), (None, WEIGHT)):
        options = {"alpha": alpha, "gamma": gamma, "reduction": reduction, "weight": weight}
        compare("FocalLoss", options, D.x, TARGETS[kind])
    v = Data(1, 4, (3, 4, 5))
    compare("FocalLoss", {"alpha": 0.3, "reduction": reduction}, v.x, v.labels)
    compare("FocalLoss", {"alpha": 0.3, "reduction": reduction}, D.x.flatten(2), TARGETS[kind].flatten(1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["hot", "soft", "multi"])
def test_binary_focal(kind, reduction):
    y = getattr(D, kind)
    ignored = y.clone()
    ignored[0, 0, :2] = -100
    for alpha, gamma, weight, pos in itertools.product((None, 0.3), (2.0, 0.5), (None, WEIGHT), (None, WEIGHT + 1)):
        options = {"alpha": alpha, "gamma": gamma, "reduction": reduction, "weight": weight, "pos_weight": pos}
        compare("BinaryFocalLossWithLogits", options, D.x, y)
        compare("BinaryFocalLossWithLogits", options, D.x, ignored)
    compare("BinaryFocalLossWithLogits", {"alpha": 0.3, "reduction": reduction}, D.x, 2.5 * D.soft - 1)


def test_one_class():
    """The softmax of one class is 1 everywhere."""
    x, y = D.x1, torch.zeros_like(D.labels)
    for average in ("micro", "macro"):
        compare("DiceLoss", {"average": average}, x, y)
    compare("TverskyLoss", {"alpha": 0.2, "beta": 0.9}, x, y)
    compare("FocalLoss", {"alpha": 0.3}, x, y)


def test_lovasz():
    for dtype in (torch.float64, torch.float32):
        x, tol = D.x.to(dtype), 1e-6 if dtype == torch.float64 else 1e-5
        compare("LovaszHingeLoss", {}, x[:, :1], D.labels.clamp(max=1), tol=tol)
        for weight, y in itertools.product((None, WEIGHT.to(dtype)), (D.labels, D.without_last)):
            compare("LovaszSoftmaxLoss", {"weight": weight}, x, y, tol=tol)
            compare("LovaszSoftmaxLoss", {"weight": weight}, x[:1], y, tol=tol)


@pytest.mark.parametrize("name", ["DiceLoss", "FocalLoss", "BinaryFocalLossWithLogits", "LovaszSoftmaxLoss"])
def test_learned_weights(name):
    weight = torch.nn.Parameter(WEIGHT.clone())
    options = {"alpha": 0.3, "reduction": "mean"} if "Focal" in name else {}
    grads = []
    for m in (theirs, ours):
        loss = getattr(m, name)(weight=weight, **options)
        assert [p is weight for p in loss.parameters()] == [True]
        value = loss(D.x, D.hot if name.startswith("Binary") else D.labels)
        grads.append(torch.autograd.grad(value, weight)[0])
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("k", [1, 3, 10])
def test_hausdorff(reduction, k):
    d = Data(2, 3, (9, 10))
    hot = torch.nn.functional.one_hot(2 - d.labels, 3).movedim(-1, 1)
    p, y = (0.4 * d.soft + 0.6 * hot).clamp(0, 1), d.labels[:, None].clone()
    y[:, :, 2:7, 2:7] = 1  # something that survives an erosion
    compare("HausdorffERLoss", {"reduction": reduction, "k": k, "alpha": 1.5}, p, y, tol=1e-5)
    compare("HausdorffERLoss", {"reduction": reduction, "k": k}, p[:, :1], torch.zeros_like(y), tol=1e-5)
    compare(
        "HausdorffERLoss3D",
        {"reduction": reduction, "k": k},
        p.reshape(2, 3, 9, 5, 2),
        y.reshape(2, 1, 9, 5, 2),
        tol=1e-5,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_structural_similarity(reduction):
    d, v = Data(2, 3, (16, 17)), Data(1, 2, (9, 8, 7))
    for padding, size in itertools.product(("same", "valid", "VALID"), (5, 11)):
        options = {"window_size": size, "reduction": reduction, "padding": padding}
        compare("SSIMLoss", options, d.soft, d.shares, tol=1e-5)
        compare("SSIMLoss", {**options, "max_val": 3.0, "eps": 0.01}, d.soft.float(), 3 * d.shares.float(), tol=1e-4)
        if size == 5:
            compare("SSIM3DLoss", options, v.soft, v.shares, tol=1e-5)
    for more in ({}, {"sigmas": (0.5, 1.0, 2.0), "alpha": 0.3, "data_range": 2.0, "compensation": 3.0}):
        compare("MS_SSIMLoss", {"reduction": reduction, **more}, d.soft, d.shares, tol=1e-4)
        compare("MS_SSIMLoss", {"reduction": reduction, **more}, d.soft[:1], d.shares, tol=1e-4)


def test_errors():
    x, y = D.x, D.labels
    for name, options in (("dice_loss", {}), ("tversky_loss", {"alpha": 0.2, "beta": 0.8})):
        a, b = (lambda *args, m=m, n=name, o=options: getattr(m, n)(*args, **o) for m in (theirs, ours))
        both_raise(lambda a=a: a(x[0], y[0]), lambda b=b: b(x[0], y[0]))
        both_raise(lambda a=a: a(x, y[:1]), lambda b=b: b(x, y[:1]))
        both_raise(lambda a=a: a(x, y[:, :3]), lambda b=b: b(x, y[:, :3]))
    checks = [  # kornia's own error there
        ("dice_loss", (x, y), {"average": "other"}),
        ("dice_loss", (x, y), {"weight": torch.ones(2)}),
        ("focal_loss", (x, y[:1]), {"alpha": 0.3}),
        ("binary_focal_loss_with_logits", (x, D.hot[:, :2]), {}),
        ("lovasz_hinge_loss", (x, y), {}),
        ("ssim_loss", (x, x, 4), {}),
    ]
    for name, args, options in checks:
        both_raise(
            lambda n=name, a=args, o=options: getattr(theirs, n)(*a, **o),
            lambda n=name, a=args, o=options: getattr(ours, n)(*a, **o),
            kind=ValueError,
        )
    for name, args, options in (
        ("focal_loss", (x, y), {"alpha": 0.3, "reduction": "other"}),
        ("ssim_loss", (x, x, 5), {"reduction": "other"}),
        ("ssim_loss", (x, x, 5), {"max_val": 1}),
        ("lovasz_softmax_loss", (x[:, :1], y), {}),
    ):
        both_raise(
            lambda n=name, a=args, o=options: getattr(theirs, n)(*a, **o),
            lambda n=name, a=args, o=options: getattr(ours, n)(*a, **o),
        )
    with pytest.raises(ValueError, match="0 to 2"):
        ours.dice_loss(x, y + 1)


def test_state():
    for name, options in (
        ("DiceLoss", {"weight": WEIGHT}),
        ("FocalLoss", {"alpha": 0.3, "weight": WEIGHT}),
        ("LovaszSoftmaxLoss", {"weight": WEIGHT}),
        ("HausdorffERLoss", {}),
        ("HausdorffERLoss3D", {}),
        ("MS_SSIMLoss", {}),
    ):
        a, b = getattr(theirs, name)(**options), getattr(ours, name)(**options)
        assert list(a.state_dict()) == list(b.state_dict())
        for key, x in a.state_dict().items():
            torch.testing.assert_close(b.state_dict()[key], x)
        assert {k for k in vars(a) if k[0] != "_"} <= {k for k in vars(b) if k[0] != "_"}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_other_label_types(dtype):
    """kornia wants int64."""
    for name, options in (
        ("dice_loss", {}),
        ("focal_loss", {"alpha": 0.3}),
        ("tversky_loss", {"alpha": 0.2, "beta": 0.8}),
    ):
        expected = outcome(lambda x, y, n=name, o=options: getattr(theirs, n)(x, y, **o), D.x, D.labels)
        found = outcome(lambda x, y, n=name, o=options: getattr(ours, n)(x, y, **o), D.x, D.labels.to(dtype))
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])


def test_half_logits():
    """kornia gives a half loss, this library float32."""
    value = ours.dice_loss(D.x.half(), D.labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.half(), theirs.dice_loss(D.x.half(), D.labels), rtol=1e-2, atol=1e-2)
