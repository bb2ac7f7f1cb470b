"""``segfuse.compat.smp`` against the installed segmentation-models-pytorch."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from against import Data, agree, both_raise, outcome, peer, same_signature

import segfuse
from segfuse.compat import smp as ours

theirs = peer("segmentation_models_pytorch", "losses")
functional = peer("segmentation_models_pytorch", "losses._functional")

pytestmark = pytest.mark.filterwarnings("ignore")

D = Data()
LONG = D.multi.long()
BINARY = LONG[:, 0]
ONE, SOFT = D.x1, D.soft[:, 0]


def ignoring(y):
    y = y.clone()
    y[0, ..., :2, :] = 255
    return y


#: mode, prediction, target, ignore_index
TARGETS = {
    "binary": ("binary", ONE, BINARY, None),
    "binary_channel": ("binary", ONE, BINARY[:, None].double(), None),
    "binary_flat": ("binary", ONE[:, 0], BINARY, None),
    "binary_soft": ("binary", ONE, SOFT, None),
    "binary_ignored": ("binary", ONE, ignoring(BINARY), 255),
    "multiclass": ("multiclass", D.x, D.labels, None),
    "multiclass_absent": ("multiclass", D.x, D.without_last, None),
    "multiclass_ignored": ("multiclass", D.x, ignoring(D.labels), 255),
    "multilabel": ("multilabel", D.x, LONG, None),
    "multilabel_float": ("multilabel", D.x, D.multi, None),
    "multilabel_soft": ("multilabel", D.x, D.soft, None),
    "multilabel_empty": ("multilabel", D.x, torch.zeros_like(D.x), None),
    "multilabel_ignored": ("multilabel", D.x, ignoring(LONG), 255),
    "volume": ("multiclass", Data(1, 3, (3, 4, 5)).x, Data(1, 3, (3, 4, 5)).labels, None),
}
targets = pytest.mark.parametrize("kind", TARGETS)


def compare(name, options, x, *rest, tol=1e-6):
    try:
        agree(getattr(theirs, name)(**options), getattr(ours, name)(**options), x, *rest, tol=tol)
    except AssertionError as error:
        raise AssertionError(f"{name}({options}): {error}") from None


@pytest.mark.parametrize("name", [name for name in ours.__all__ if not name.endswith("_MODE")])
def test_signatures(name):
    same_signature(getattr(theirs, name, None) or getattr(functional, name), getattr(ours, name))


def test_every_name_is_there():
    assert set(theirs.__all__) <= set(ours.__all__)
    assert all(getattr(ours, name) == getattr(theirs, name) for name in theirs.__all__ if name.endswith("_MODE"))


@targets
@pytest.mark.parametrize("from_logits", [True, False])
def test_regions(kind, from_logits):
    mode, x, y, ignore_index = TARGETS[kind]
    x = x if from_logits else x.softmax(1) if mode == "multiclass" else x.sigmoid()
    classes = [
        {"classes": [0, 2]},
        {"class_weights": [0.2, 1.0, 3.0]},
        {"classes": [1, 2], "class_weights": [0.2, 1, 3]},
    ]
    for more in [
        {},
        {"log_loss": True, "smooth": 0.3},
        {"eps": 0.1, "smooth": 1.0},
        *(classes if mode != "binary" else []),
    ]:
        options = {"mode": mode, "ignore_index": ignore_index, "from_logits": from_logits, **more}
        compare("DiceLoss", options, x, y)
        compare("JaccardLoss", options, x, y)
        compare("TverskyLoss", {**options, "alpha": 0.2, "beta": 0.9, "gamma": 0.75}, x, y)


@targets
@pytest.mark.parametrize("from_logits", [True, False])
def test_focal(kind, from_logits):
    mode, x, y, ignore_index = TARGETS[kind]
    if kind == "multilabel_ignored":
        return  # SMP fails: it indexes the map of a class with the mask of all
    x = x if from_logits else x.softmax(1) if mode == "multiclass" else x.sigmoid()
    more = [{}, {"alpha": 0.3, "gamma": 0.5}, {"normalized": True}, {"reduced_threshold": 0.4, "alpha": 0.2}]
    more += [] if mode == "binary" else [{"class_weights": [0.2, 1.0, 3.0]}]
    for reduction, options in itertools.product(("mean", "sum", "none", "batchwise_mean"), more):
        if reduction in ("none", "batchwise_mean") and "class_weights" in options:
            continue  # SMP fails: it weighs the columns of an image
        options = {"mode": mode, "ignore_index": ignore_index, "from_logits": from_logits, **options}
        compare("FocalLoss", {**options, "reduction": reduction}, x, y)


@targets
@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz(kind, per_image):
    mode, x, y, ignore_index = TARGETS[kind]
    if y.dtype.is_floating_point:
        return
    compare("LovaszLoss", {"mode": mode, "per_image": per_image, "ignore_index": ignore_index}, x.float(), y, tol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 255, None])
def test_soft_cross_entropies(reduction, ignore_index):
    r = torch.Generator().manual_seed(0)
    common = {"reduction": reduction, "ignore_index": ignore_index}
    pos_weights = [None, torch.tensor([2.0]), *(torch.rand(s, generator=r) for s in ((3, 1, 1), (1, 3, 1, 1), (6, 7)))]
    for smoothing, pos_weight in itertools.product((None, 0.1), pos_weights):
        for weight, y in itertools.product(
            (None, torch.rand((3, 1, 1), generator=r)), (D.multi, D.soft, ignoring(D.multi))
        ):
            options = {**common, "smooth_factor": smoothing, "pos_weight": pos_weight, "weight": weight}
            compare("SoftBCEWithLogitsLoss", options, D.x, y)
    for smoothing, y in itertools.product((0.0, 0.1), (D.labels, D.labels[:, None])):
        compare("SoftCrossEntropyLoss", {**common, "smooth_factor": smoothing}, D.x, y)
        if ignore_index == 255:
            compare("SoftCrossEntropyLoss", {**common, "smooth_factor": smoothing}, D.x, ignoring(y))
    compare("SoftCrossEntropyLoss", {"smooth_factor": 0.1, "dim": -1}, D.x.movedim(1, -1), D.labels)


def test_mcc():
    for y in (BINARY, BINARY[:, None].double(), SOFT):
        compare("MCCLoss", {"eps": 0.01}, ONE.sigmoid(), y)


def test_functions():
    p, y, x = D.shares, D.hot, D.x
    for dims in (None, (0, 2), (2, 3)):
        for name in ("soft_dice_score", "soft_jaccard_score"):
            agree(
                lambda p, n=name, d=dims: getattr(functional, n)(p, y, 0.3, 0.1, d),
                lambda p, n=name, d=dims: getattr(ours, n)(p, y, 0.3, 0.1, d),
                p,
            )
    for normalized, threshold in itertools.product((False, True), (None, 0.4)):
        options = {"normalized": normalized, "reduced_threshold": threshold, "reduction": "sum"}
        for name, target in (("focal_loss_with_logits", D.soft), ("softmax_focal_loss_with_logits", D.labels)):
            agree(
                lambda x, n=name, t=target, o=options: getattr(functional, n)(x, t, **o),
                lambda x, n=name, t=target, o=options: getattr(ours, n)(x, t, **o),
                x,
            )


def test_errors():
    for name in ("DiceLoss", "JaccardLoss", "TverskyLoss", "FocalLoss", "LovaszLoss"):
        a, b = getattr(theirs, name), getattr(ours, name)
        both_raise(lambda a=a: a("other"), lambda b=b: b("other"))
        if name != "LovaszLoss":
            both_raise(lambda a=a: a("binary", class_weights=[1.0]), lambda b=b: b("binary", class_weights=[1.0]))
    both_raise(lambda: theirs.DiceLoss("binary", classes=[0]), lambda: ours.DiceLoss("binary", classes=[0]))
    a, b = theirs.DiceLoss("binary"), ours.DiceLoss("binary")
    both_raise(lambda: a(ONE, BINARY[:1]), lambda: b(ONE, BINARY[:1]))
    with pytest.raises(ValueError, match=r"y_true.*argmax"):  # a bare error deep inside in SMP
        ours.DiceLoss("multiclass")(D.x, D.hot)


def test_state():
    for name, options in (
        ("SoftBCEWithLogitsLoss", {"weight": torch.ones(1), "pos_weight": torch.ones(1)}),
        ("SoftCrossEntropyLoss", {}),
        ("DiceLoss", {"mode": "multiclass", "class_weights": [1.0, 2.0], "classes": [0]}),
        ("FocalLoss", {"mode": "multiclass", "class_weights": [1.0, 2.0]}),
        ("LovaszLoss", {"mode": "binary"}),
    ):
        a, b = getattr(theirs, name)(**options), getattr(ours, name)(**options)
        assert list(a.state_dict()) == list(b.state_dict())
        assert {k for k in vars(a) if k[0] != "_"} <= {k for k in vars(b) if k[0] != "_"}


def test_hooks_of_a_subclass():
    for m in (theirs, ours):

        class Mine(m.DiceLoss):
            def compute_score(self, output, target, smooth=0.0, eps=1e-7, dims=None):
                return super().compute_score(output, target, smooth, eps, dims) ** 2

            def aggregate_loss(self, loss):
                return loss.max()

        if m is theirs:
            expected = outcome(Mine("multiclass"), D.x, D.labels)
    found = outcome(Mine("multiclass"), D.x, D.labels)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


# ------------------------------------------------------------------------------------------- where SMP has no number


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_class_numbers_of_every_type(dtype):
    for name in ("DiceLoss", "JaccardLoss", "TverskyLoss"):
        loss = getattr(ours, name)("multiclass")
        torch.testing.assert_close(loss(D.x, D.labels.to(dtype)), loss(D.x, D.labels))
        with pytest.raises(RuntimeError):
            getattr(theirs, name)("multiclass")(D.x, D.labels.to(dtype))


def test_everything_ignored():
    y = torch.full_like(D.labels, 255)
    assert theirs.FocalLoss("multiclass", ignore_index=255)(D.x, y).isnan()
    assert theirs.LovaszLoss("multiclass", ignore_index=255)(D.x, y).shape == (0, 3)
    for name in ("FocalLoss", "LovaszLoss", "DiceLoss"):
        value, grad = outcome(getattr(ours, name)("multiclass", ignore_index=255), D.x, y)
        assert value.shape == () and value == 0 and not grad.any()


def test_lovasz_of_doubles_and_halves():
    loss = ours.LovaszLoss("multiclass")
    single = loss(D.x.float(), D.labels)
    torch.testing.assert_close(loss(D.x, D.labels).float(), single)
    torch.testing.assert_close(loss(D.x.half(), D.labels), single, rtol=1e-2, atol=1e-2)
    with pytest.raises(RuntimeError):
        theirs.LovaszLoss("multiclass")(D.x, D.labels)


def test_without_smoothing():
    with pytest.raises(TypeError):  # SMP's default
        theirs.SoftCrossEntropyLoss()(D.x, D.labels)
    torch.testing.assert_close(ours.SoftCrossEntropyLoss()(D.x, D.labels), F.cross_entropy(D.x, D.labels))


def test_halves_do_not_overflow():
    y = torch.zeros((1, 512, 512), dtype=torch.long)
    y[..., :256] = 1
    x = (8.0 * y[:, None] - 4).half()
    for name in ("DiceLoss", "JaccardLoss"):
        found = getattr(ours, name)("binary")(x, y)
        torch.testing.assert_close(found, getattr(theirs, name)("binary")(x.float(), y), rtol=1e-3, atol=1e-4)
        assert getattr(theirs, name)("binary")(x, y).isnan()
    p = x.sigmoid()
    torch.testing.assert_close(ours.MCCLoss()(p, y), theirs.MCCLoss()(p.double(), y).float(), rtol=1e-3, atol=1e-4)


def test_explain():
    assert "reduced" not in segfuse.explain(ours.DiceLoss("multiclass"), D.x, D.labels)
    assert "l1" in segfuse.explain(ours.DiceLoss("multiclass"), D.x, D.labels)
    assert "torch operations" in segfuse.explain(ours.FocalLoss("multiclass", normalized=True), D.x, D.labels)
