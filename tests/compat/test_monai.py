"""``segfuse.compat.monai`` against the installed MONAI."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from against import Data, agree, both_raise, outcome, peer, same_signature

import segfuse
from segfuse.compat import monai as ours

theirs = peer("monai", "losses")
focal_module = peer("monai", "losses.focal_loss")
unified_module = peer("monai", "losses.unified_focal_loss")

pytestmark = pytest.mark.filterwarnings("ignore")

MODULES = (theirs, focal_module, unified_module)
D = Data()
ACTIVATIONS = [{}, {"sigmoid": True}, {"softmax": True}, {"other_act": torch.tanh}]
#: Logits, target and what the target needs; the last has three axes.
TARGETS = {
    "labels": (D.x, D.labels[:, None], {"to_onehot_y": True}),
    "float_labels": (D.x, D.labels[:, None].float(), {"to_onehot_y": True}),
    "one_hot": (D.x, D.hot, {}),
    "soft": (D.x, D.soft, {}),
    "masks": (D.x, D.multi, {}),
    "binary": (D.x1, D.mask, {}),
    "binary_soft": (D.x1, D.soft1, {}),
    "volume": (
        Data(1, 4, (3, 4, 5)).x,
        Data(1, 4, (3, 4, 5)).labels[:, None],
        {"to_onehot_y": True},
    ),
}
REDUCTIONS = ("mean", "sum", "none")
targets = pytest.mark.parametrize("kind", TARGETS)


def their(name):
    return next(getattr(m, name) for m in MODULES if hasattr(m, name))


def compare(name, options, x, *rest, tol=1e-6):
    try:
        agree(their(name)(**options), getattr(ours, name)(**options), x, *rest, tol=tol)
    except AssertionError as error:
        raise AssertionError(f"{name}({options}) on {tuple(x.shape)}: {error}") from None


def cases(kind, backgrounds=(True, False), reductions=REDUCTIONS, batches=(False, True)):
    """(logits, target, options, number of remaining channels)."""
    x, y, needs = TARGETS[kind]
    for act, background, reduction, batch in itertools.product(ACTIVATIONS, backgrounds, reductions, batches):
        options = {**needs, **act, "include_background": background, "reduction": reduction, "batch": batch}
        yield x, y, options, x.shape[1] - (not background and x.shape[1] > 1)


@pytest.mark.parametrize("name", [name for name in ours.__all__ if name[0].isupper() or name.endswith("focal_loss")])
def test_signatures(name):
    same_signature(their(name), getattr(ours, name))


def test_every_name_is_there():
    left_out = [
        "AUCMLoss",
        "BarlowTwinsLoss",
        "BendingEnergyLoss",
        "DiffusionLoss",
        "BoxGIoULoss",
        "ContrastiveLoss",
        "GlobalMutualInformationLoss",
        "JukeboxLoss",
        "PatchAdversarialLoss",
        "PerceptualLoss",
        "SURELoss",
        "giou",
    ]
    names = {name for name, x in vars(theirs).items() if isinstance(x, type) or callable(x)}
    assert {name for name in names if not name.startswith("_")} - set(left_out) <= set(ours.__all__)


@targets
def test_dice(kind):
    for x, y, options, n in cases(kind):
        weights = [0.5, 2.0, 1.0, 0.7][:n]
        for more in (
            {},
            {"squared_pred": True, "jaccard": True},
            {"soft_label": True, "smooth_nr": 0.3, "smooth_dr": 0.7},
            {"weight": weights},
            {"weight": 0.7, "jaccard": True},
            {"ignore_index": 0},
            {"ignore_index": 1},
            {"ignore_index": 255},
        ):
            compare("DiceLoss", {**options, **more}, x, y)


@targets
def test_tversky(kind):
    for x, y, options, _ in cases(kind):
        for more in ({}, {"alpha": 0.2, "beta": 0.9}, {"ignore_index": 1}, {"ignore_index": -1}, {"soft_label": True}):
            compare("TverskyLoss", {**options, **more}, x, y)


@targets
def test_generalized_dice(kind):
    for x, y, options, _ in cases(kind):
        for more in ({}, {"w_type": "simple"}, {"w_type": "uniform", "smooth_nr": 0.1}, {"soft_label": True}):
            compare("GeneralizedDiceLoss", {**options, **more}, x, y)


@targets
def test_mcc(kind):
    for x, y, options, _ in cases(kind):
        if options.get("sigmoid") or (options.get("softmax") and x.shape[1] > 1):
            compare("MCCLoss", options, x, y)


@targets
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("ignore_index", [None, 0, 1, 255])
def test_focal(kind, softmax, ignore_index):
    for x, y, options, n in cases(kind, batches=(False,)):
        if len(options) > 3 + ("to_onehot_y" in options):
            continue  # one activation is enough: it has its own
        options = {k: v for k, v in options.items() if k != "batch"}
        options |= {"use_softmax": softmax, "ignore_index": ignore_index}
        weights = [0.5, 2.0, 1.0, 0.7][:n]
        for more in ({}, {"gamma": 0.5, "alpha": 0.3}, {"alpha": weights}, {"weight": 0.3, "gamma": 0.0}):
            compare("FocalLoss", {**options, **more}, x, y, tol=1e-5)
        if n > 1:
            compare("FocalLoss", {**options, "weight": weights}, x, y, tol=1e-5)


@targets
def test_dice_ce(kind):
    for x, y, options, _ in cases(kind, reductions=("mean", "sum")):
        weight = torch.tensor([0.5, 2.0, 1.0, 0.7][: x.shape[1]], dtype=torch.float64)
        smoothed = {"label_smoothing": 0.1, "lambda_dice": 0.3, "lambda_ce": 1.7}
        for more in ({}, smoothed, {"weight": weight}):
            compare("DiceCELoss", {**options, **more}, x, y)


@targets
@pytest.mark.parametrize("name", ["DiceFocalLoss", "GeneralizedDiceFocalLoss"])
def test_with_focal(kind, name):
    for x, y, options, n in cases(kind):
        for more in ({}, {"gamma": 1.5, "lambda_focal": 0.3}, {"weight": [0.5, 2.0, 1.0, 0.7][:n] if n > 1 else 2.0}):
            compare(name, {**options, **more}, x, y, tol=1e-5)
        if name == "DiceFocalLoss":
            compare(name, {**options, "alpha": 0.3}, x, y, tol=1e-5)


@targets
@pytest.mark.parametrize("name", ["HausdorffDTLoss", "LogHausdorffDTLoss", "BoundaryLoss"])
def test_distances(kind, name):
    for x, y, options, _ in cases(kind):
        compare(name, options, x, y)
        if name == "HausdorffDTLoss" and options["batch"]:
            compare(name, {**options, "alpha": 1.5}, x, y, tol=1e-5)


def test_distances_of_empty_and_full_masks():
    x = D.x
    for y in (torch.zeros_like(D.hot), torch.ones_like(D.hot), D.hot * torch.tensor([0.0, 1, 1]).reshape(1, 3, 1, 1)):
        for name in ("HausdorffDTLoss", "BoundaryLoss"):
            compare(name, {"sigmoid": True, "include_background": True}, x, y)
    compare("BoundaryLoss", {"softmax": True, "to_onehot_y": True}, x, D.labels)


@pytest.mark.parametrize("mask", ["bool", "float", "shares", "one", None])
def test_masked_dice(mask):
    r = torch.Generator().manual_seed(1)
    hard = torch.rand((2, 1, 6, 7), generator=r) < 0.6
    mask = {
        "bool": hard,
        "float": hard.float(),
        "shares": torch.rand((2, 1, 6, 7), generator=r),
        "one": hard[:1].long(),
        None: None,
    }[mask]
    for options, y in (
        ({"softmax": True, "to_onehot_y": True}, D.labels[:, None].float()),
        ({"softmax": True}, D.hot),
        ({"sigmoid": True}, D.multi),
        ({"other_act": torch.sigmoid, "include_background": False}, D.soft),
        ({"softmax": True, "squared_pred": True}, D.hot),
    ):
        compare("MaskedDiceLoss", options, D.x, y, mask)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [None, 0, 1, 255])
def test_unified_focal(reduction, ignore_index):
    d = Data(2, 2, (5, 6))
    p, labels = d.soft, d.labels[:, None]
    common = {"reduction": reduction, "ignore_index": ignore_index}
    for name in ("AsymmetricFocalTverskyLoss", "AsymmetricFocalLoss", "AsymmetricUnifiedFocalLoss"):
        for more in ({}, {"delta": 0.6, "gamma": 0.4}):
            compare(name, {**common, **more, "to_onehot_y": True}, p, labels)
            compare(name, {**common, **more}, p, d.hot)
    compare("AsymmetricUnifiedFocalLoss", {**common, "weight": 0.3}, p[:, :1], d.multi[:, :1])


@pytest.mark.parametrize("mode", ["default", "GDL"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_wasserstein_dice(mode, reduction):
    costs = np.array([[0.0, 1, 1], [1, 0, 0.5], [1, 0.5, 0]])
    options = {"weighting_mode": mode, "reduction": reduction}
    compare("GeneralizedWassersteinDiceLoss", {**options, "dist_matrix": 2 * costs}, D.x, D.labels[:, None])
    compare("GeneralizedWassersteinDiceLoss", {**options, "dist_matrix": torch.tensor(costs)}, D.x, D.labels)


@pytest.mark.parametrize("kind", ["labels", "one_hot", "soft", "binary", "volume"])
def test_cl_dice(kind):
    for x, y, options, _ in cases(kind, batches=(False,)):
        options = {k: v for k, v in options.items() if k != "batch"}
        compare("SoftclDiceLoss", {**options, "iter_": 2, "smooth_nr": 0.5}, x, y)
        compare("SoftDiceclDiceLoss", {**options, "alpha": 0.3}, x, y)


@pytest.mark.parametrize("kernel", ["mean", "gaussian"])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_nacl(kernel, distance):
    options = {"kernel_ops": kernel, "distance_type": distance, "sigma": 0.8, "alpha": 0.4}
    for size in (3, 5):
        compare("NACLLoss", {"classes": 3, "dim": 2, "kernel_size": size, **options}, D.x.float(), D.labels, tol=1e-5)
    v = Data(1, 2, (5, 6, 7))
    compare("NACLLoss", {"classes": 2, "dim": 3, **options}, v.x.float(), v.labels, tol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_images(reduction):
    d = Data(2, 3, (16, 17))
    a, b = d.soft.float(), d.shares.float()
    for kernel in ("gaussian", "uniform"):
        small = {"spatial_dims": 2, "win_size": 5, "kernel_type": kernel, "reduction": reduction}
        compare("SSIMLoss", small, a, b, tol=2e-5)
        mixed = {**small, "win_size": [5, 7], "kernel_sigma": [1.0, 2.0], "data_range": 3.0, "k1": 0.02}
        compare("SSIMLoss", mixed, a, 3 * b - 1, tol=2e-5)  # a target beyond 0 to 1
    for kernel, size in itertools.product(("rectangular", "triangular", "gaussian"), (3, 5, 7)):
        options = {"spatial_dims": 2, "kernel_size": size, "kernel_type": kernel, "reduction": reduction}
        compare("LocalNormalizedCrossCorrelationLoss", options, a.double(), b.double(), tol=1e-5)
    v = Data(1, 2, (9, 9, 9))
    compare("LocalNormalizedCrossCorrelationLoss", {"reduction": reduction}, v.soft, v.shares, tol=1e-5)


@pytest.mark.parametrize("mode", ["exp", "two", "same", "other"])
@pytest.mark.parametrize("weights", [None, [1.0, 0.2, 0.1], [1.0]])
def test_deep_supervision(mode, weights):
    r = torch.Generator().manual_seed(0)
    heads = [torch.randn((2, 3, *s), generator=r) for s in ((8, 8), (4, 4), (3, 2))]
    y = torch.randint(0, 3, (2, 1, 8, 8), generator=r).float()
    value = [
        m.DeepSupervisionLoss(m.DiceCELoss(softmax=True, to_onehot_y=True), mode, weights)(heads, y)
        for m in (theirs, ours)
    ]
    torch.testing.assert_close(value[1], value[0], rtol=1e-5, atol=1e-6)


def test_wrappers():
    a, b = D.soft, D.shares
    for kernel, scales in itertools.product(("gaussian", "cauchy"), (None, [0, 1, 2])):
        loss = torch.nn.MSELoss()
        agree(theirs.MultiScaleLoss(loss, scales, kernel), ours.MultiScaleLoss(loss, scales, kernel), a, b)
    mask = D.mask
    agree(theirs.MaskedLoss(theirs.DiceLoss, sigmoid=True), ours.MaskedLoss(ours.DiceLoss, sigmoid=True), a, b, mask)


def test_without_spatial_axes():
    """MONAI sums over everything when there is no axis to sum over."""
    x, y = D.x[:, :, 0, 0].repeat(3, 1), torch.tensor([0, 1, 2, 0, 1, 2])
    for name, reduction in itertools.product(("DiceLoss", "TverskyLoss", "FocalLoss"), REDUCTIONS):
        activation = {} if name == "FocalLoss" else {"softmax": True}
        for target in (y, y[:, None]):
            compare(name, {"to_onehot_y": True, "reduction": reduction, **activation}, x, target)


def test_errors():
    x, y = D.x, D.labels[:, None]
    for name in ("DiceLoss", "TverskyLoss", "GeneralizedDiceLoss", "MCCLoss", "HausdorffDTLoss", "BoundaryLoss"):
        a, b = their(name), getattr(ours, name)
        both_raise(lambda a=a: a()(x, y), lambda b=b: b()(x, y))  # one channel against three
        both_raise(lambda a=a: a(to_onehot_y=True)(x, D.hot), lambda b=b: b(to_onehot_y=True)(x, D.hot))
        both_raise(lambda a=a: a(reduction="other"), lambda b=b: b(reduction="other"))
        both_raise(lambda a=a: a(sigmoid=True, softmax=True), lambda b=b: b(sigmoid=True, softmax=True))
        both_raise(lambda a=a: a(other_act="tanh"), lambda b=b: b(other_act="tanh"))
    for name, options in (
        ("DiceLoss", {"weight": [1.0, 2.0]}),
        ("DiceLoss", {"weight": [1.0, -2.0, 1.0]}),
        ("FocalLoss", {"weight": [1.0, 2.0]}),
        ("FocalLoss", {"weight": -1.0}),
        ("FocalLoss", {"alpha": [1.0, 2.0]}),
    ):
        a, b = their(name)(**options), getattr(ours, name)(**options)
        both_raise(lambda a=a: a(x, D.hot), lambda b=b: b(x, D.hot))
    for name in ("FocalLoss", "DiceCELoss", "DiceFocalLoss", "GeneralizedDiceFocalLoss"):
        a, b = their(name)(), getattr(ours, name)()
        both_raise(lambda a=a: a(x, D.hot[:, :2]), lambda b=b: b(x, D.hot[:, :2]))
    for name in ("DiceCELoss", "DiceFocalLoss"):
        both_raise(lambda n=name: their(n)(lambda_dice=-1.0), lambda n=name: getattr(ours, n)(lambda_dice=-1.0))
    both_raise(lambda: theirs.DiceCELoss(reduction="none"), lambda: ours.DiceCELoss(reduction="none"))
    both_raise(lambda: theirs.GeneralizedDiceLoss(w_type="x"), lambda: ours.GeneralizedDiceLoss(w_type="x"))
    both_raise(
        lambda: theirs.HausdorffDTLoss()(x[..., 0], x[..., 0]), lambda: ours.HausdorffDTLoss()(x[..., 0], x[..., 0])
    )


@pytest.mark.parametrize(
    "name", ["DiceLoss", "DiceCELoss", "FocalLoss", "DiceFocalLoss", "LocalNormalizedCrossCorrelationLoss"]
)
def test_state_and_attributes(name):
    options = {} if name.startswith("Local") else {"weight": torch.tensor([0.5, 2.0, 1.0])}
    a, b = their(name)(**options), getattr(ours, name)(**options)
    assert list(a.state_dict()) == list(b.state_dict())
    b.load_state_dict(a.state_dict())
    public = {k for k in vars(a) if not k.startswith("_")} | set(a._modules) | set(a._buffers)
    assert public <= {k for k in vars(b) if not k.startswith("_")} | set(b._modules) | set(b._buffers)
    assert isinstance(b, torch.nn.modules.loss._Loss)
    if not name.startswith("Local"):
        for c in (copy.deepcopy(b), pickle.loads(pickle.dumps(b))):
            torch.testing.assert_close(c(D.x, D.hot), b(D.x, D.hot))


def test_settings_may_change():
    a, b = (m.DiceCELoss(softmax=True, to_onehot_y=True) for m in (theirs, ours))
    for loss in (a, b):
        loss.dice.smooth_nr, loss.lambda_ce, loss.dice.include_background = 0.4, 0.3, False
    agree(a, b, D.x, D.labels[:, None])
    torch.testing.assert_close(b.ce(D.x, D.labels[:, None]), a.ce(D.x, D.labels[:, None]))
    torch.testing.assert_close(b.bce(D.x1, D.mask), a.bce(D.x1, D.mask))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.bool, torch.float16, torch.float32])
def test_label_types(dtype):
    y = D.labels[:, None]
    y = y.clamp(max=1).to(dtype) if dtype == torch.bool else y.to(dtype)
    expected = outcome(theirs.DiceCELoss(softmax=True, to_onehot_y=True), D.x, y.float())
    found = outcome(ours.DiceCELoss(softmax=True, to_onehot_y=True), D.x, y)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-8)


def test_half_logits_do_not_overflow():
    """MONAI's sums in float16 are infinite from 65504 on: the loss of a good prediction is 1, its gradient 0."""
    y = torch.zeros((1, 1, 512, 512))
    y[..., :256] = 1
    x = (8 * y - 4).half()
    expected = theirs.DiceLoss(sigmoid=True)(x.float(), y)
    value, grad = outcome(ours.DiceLoss(sigmoid=True), x, y)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)
    assert value.dtype == torch.float32 and grad.abs().sum() > 0
    assert float(theirs.DiceLoss(sigmoid=True)(x, y)) > 0.9


def test_a_list_of_weights():
    with pytest.raises(TypeError):
        theirs.DiceCELoss(softmax=True, to_onehot_y=True, weight=[0.5, 2.0, 1.0])
    loss = ours.DiceCELoss(softmax=True, to_onehot_y=True, weight=[0.5, 2.0, 1.0])
    tensor = ours.DiceCELoss(softmax=True, to_onehot_y=True, weight=torch.tensor([0.5, 2.0, 1.0]))
    torch.testing.assert_close(loss(D.x, D.labels[:, None]), tensor(D.x, D.labels[:, None]))


def test_meta_tensors():
    data = peer("monai", "data")
    x, y = data.MetaTensor(D.x), data.MetaTensor(D.labels[:, None].float())
    x.requires_grad_()
    for name in ("DiceCELoss", "DiceFocalLoss"):
        loss = getattr(ours, name)(softmax=True, to_onehot_y=True)
        value = loss(x, y)
        assert type(value) is torch.Tensor
        torch.testing.assert_close(value, loss(D.x, D.labels[:, None]))
        value.backward()
        assert x.grad is not None


def test_gradient_of_the_target():
    """MONAI's losses of two predictions have a gradient for both."""
    p, q = D.shares.clone().requires_grad_(), D.hot.clone().requires_grad_()
    grads = [torch.autograd.grad(m.DiceLoss(squared_pred=True)(p, q), (p, q)) for m in (theirs, ours)]
    for expected, found in zip(*grads):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_values_that_are_no_shares():
    """A target beyond 0 to 1 is a number like any other to MONAI."""
    for y in (2.5 * D.soft - 1, 255 * D.multi, 255 * D.multi.long()):
        compare("FocalLoss", {}, D.x, y, tol=1e-5)
        compare("DiceLoss", {"sigmoid": True}, D.x, y)
        compare("TverskyLoss", {"sigmoid": True, "alpha": 0.2}, D.x, y)


def test_second_derivatives_vmap_and_compile():
    loss, y = ours.DiceCELoss(softmax=True, to_onehot_y=True), D.labels[:, None]
    x = D.x[:, :, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: loss(x, y[:, :, :2, :2]), x)
    single = torch.func.vmap(lambda x, y: loss(x[None], y[None]))(D.x, y)
    torch.testing.assert_close(single, torch.stack([loss(a[None], b[None]) for a, b in zip(D.x, y)]))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(D.x, y), loss(D.x, y))


def test_one_pass(calls):
    """Dice and cross-entropy of one reading share it; a sigmoid focal beside a softmax Dice does not."""
    y = D.labels[:, None]
    ours.DiceCELoss(softmax=True, to_onehot_y=True)(D.x, y)
    assert calls["formula_forward"] == 1
    ours.DiceFocalLoss(sigmoid=True, to_onehot_y=True)(D.x, y)
    assert calls["formula_forward"] == 2
    ours.DiceFocalLoss(softmax=True, to_onehot_y=True)(D.x, y)
    assert calls["formula_forward"] == 4


def test_explain():
    text = segfuse.explain(ours.DiceCELoss(softmax=True, to_onehot_y=True), D.x, D.labels[:, None])
    assert "softmax" in text and "focal(0)" in text
    assert "soft target" in segfuse.explain(ours.FocalLoss(), D.x, D.soft)
