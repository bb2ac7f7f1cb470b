"""``segfuse.patch``: a library's own names, computed here."""

from __future__ import annotations

import types

import pytest
import torch
from against import Data, outcome, peer

import segfuse

theirs = peer("monai", "losses")

pytestmark = pytest.mark.filterwarnings("ignore")

D = Data()
LABELS = D.labels[:, None]
OPTIONS = {"softmax": True, "to_onehot_y": True}


@pytest.fixture(autouse=True)
def unpatched():
    yield
    segfuse.unpatch()
    assert segfuse.patched() == {}


def passes(calls, loss, x=D.x, y=LABELS):
    """How many fused passes a call makes."""
    before = calls["formula_forward"]
    loss(x, y)
    return calls["formula_forward"] - before


def test_objects_and_names_from_before_and_after(calls):
    cls, before = theirs.DiceCELoss, theirs.DiceCELoss(**OPTIONS)
    original, expected = cls.forward, outcome(before, D.x, LABELS)
    with segfuse.patch("monai") as handle:
        assert "DiceCELoss" in handle.names and "DiceCELoss" in segfuse.patched()["monai"]
        assert theirs.DiceCELoss is cls
        after = theirs.DiceCELoss(**OPTIONS)
        for loss in (before, after):
            assert isinstance(loss, cls) and isinstance(loss.dice, theirs.DiceLoss)
            assert passes(calls, loss) == 1
            for a, b in zip(outcome(loss, D.x, LABELS), expected):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert cls.forward is original and passes(calls, before) == 0 == passes(calls, after)


@pytest.mark.parametrize("name", segfuse.patch.__globals__["_PEERS"]["monai"].names)
def test_every_class_of_monai(name):
    """The peer's own objects hold what the fused code reads."""
    cls = getattr(theirs, name, None) or getattr(peer("monai", "losses.unified_focal_loss"), name)
    d = Data(2, 2) if name.startswith("Asymmetric") else D
    x, y, options = d.x, d.labels[:, None], {"to_onehot_y": True}
    if name.startswith("Asymmetric"):
        x = d.soft
    elif name == "SSIMLoss":
        x, y, options = d.soft, d.shares, {"spatial_dims": 2, "win_size": 5}
    elif name == "MaskedDiceLoss" or name != "FocalLoss":
        options["softmax"] = True
    rest = (D.mask,) if name == "MaskedDiceLoss" else ()
    loss = cls(**options)
    expected = outcome(loss, x, y, *rest)
    with segfuse.patch("monai", only=[name]):
        assert "segfuse" in cls.forward.__code__.co_filename
        for a, b in zip(outcome(loss, x, y, *rest), expected):
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)


def test_smp(calls):
    smp = peer("segmentation_models_pytorch", "losses")
    cases = {
        "DiceLoss": ({"mode": "multiclass"}, D.x, D.labels),
        "JaccardLoss": ({"mode": "multiclass", "classes": [0, 2]}, D.x, D.labels),
        "TverskyLoss": ({"mode": "multilabel", "alpha": 0.2, "gamma": 0.7}, D.x, D.multi),
        "FocalLoss": ({"mode": "multiclass", "alpha": 0.3, "class_weights": [1.0, 2.0, 3.0]}, D.x, D.labels),
        "LovaszLoss": ({"mode": "binary"}, D.x1.float(), D.mask.long()),
        "SoftBCEWithLogitsLoss": ({"pos_weight": torch.tensor([2.0])}, D.x, D.multi),
        "SoftCrossEntropyLoss": ({"smooth_factor": 0.1}, D.x, D.labels),
        "MCCLoss": ({}, D.x1.sigmoid(), D.mask),
    }
    losses = {name: getattr(smp, name)(**options) for name, (options, _, _) in cases.items()}
    expected = {name: outcome(losses[name], *cases[name][1:]) for name in cases}

    class Mine(smp.DiceLoss):
        def compute_score(self, *args, **kwargs):
            return super().compute_score(*args, **kwargs) ** 2

    mine = Mine("multiclass")
    squared = outcome(mine, D.x, D.labels)
    with segfuse.patch("smp") as handle:
        assert set(handle.names) == set(cases)
        for name, (_, x, y) in cases.items():
            before = sum(calls.values())
            for a, b in zip(outcome(losses[name], x, y), expected[name]):
                torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)
            assert sum(calls.values()) > before, name
        before = sum(calls.values())
        for a, b in zip(outcome(mine, D.x, D.labels), squared):
            torch.testing.assert_close(a, b)
        assert sum(calls.values()) == before  # its own score: the library's code
    assert "forward" not in vars(smp.TverskyLoss)  # it has none of its own


def test_kornia_functions_wherever_they_are_held(calls):
    kornia = peer("kornia", "losses")
    user = types.ModuleType("some_user_module")
    user.dice_loss = original = kornia.dice_loss
    import sys

    sys.modules[user.__name__] = user
    try:
        expected = outcome(original, D.x, D.labels)
        losses = {
            "FocalLoss": (kornia.FocalLoss(0.3), D.x, D.labels),
            "LovaszSoftmaxLoss": (kornia.LovaszSoftmaxLoss(), D.x, D.labels),
            "HausdorffERLoss": (kornia.HausdorffERLoss(k=2), D.soft, LABELS),
            "MS_SSIMLoss": (kornia.MS_SSIMLoss(), D.soft, D.shares),
        }
        known = {name: outcome(loss, *rest) for name, (loss, *rest) in losses.items()}
        with segfuse.patch("kornia"):
            assert user.dice_loss is kornia.dice_loss is not original
            assert passes(calls, user.dice_loss, D.x, D.labels) == 1
            for a, b in zip(outcome(user.dice_loss, D.x, D.labels), expected):
                torch.testing.assert_close(a, b)
            for name, (loss, *rest) in losses.items():
                for a, b in zip(outcome(loss, *rest), known[name]):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert user.dice_loss is kornia.dice_loss is original
        assert segfuse.compat.kornia.dice_loss is not original
    finally:
        del sys.modules[user.__name__]


def test_nnunet(calls):
    compound = peer("nnunetv2", "training.loss.compound_losses")
    dice = peer("nnunetv2", "training.loss.dice")
    options = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = compound.DC_and_CE_loss(dict(options), {}, dice_class=dice.MemoryEfficientSoftDiceLoss)
    regions = compound.DC_and_BCE_loss({}, dict(options))
    top_k = compound.DC_and_topk_loss(dict(options), {"k": 20})
    cases = [(loss, LABELS), (regions, D.multi), (top_k, LABELS)]
    expected = [outcome(f, D.x, y) for f, y in cases]
    with segfuse.patch("nnunet"):
        assert passes(calls, loss) == 1
        for (f, y), known in zip(cases, expected):
            for a, b in zip(outcome(f, D.x, y), known):
                torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)


def test_torchvision():
    try:
        import torchvision.ops
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not import: {error}")
    original = torchvision.ops.sigmoid_focal_loss
    expected = original(D.x, D.hot, reduction="mean")
    with segfuse.patch("torchvision"):
        assert torchvision.ops.sigmoid_focal_loss is not original
        torch.testing.assert_close(torchvision.ops.sigmoid_focal_loss(D.x, D.hot, reduction="mean"), expected)
    assert torchvision.ops.sigmoid_focal_loss is original


def test_twice_is_once():
    original = theirs.DiceLoss.forward
    one = segfuse.patch("monai")
    replaced = theirs.DiceLoss.forward
    two = segfuse.patch("monai", only=["DiceLoss"])
    assert theirs.DiceLoss.forward is replaced
    one.undo()
    one.undo()
    assert theirs.DiceLoss.forward is replaced and segfuse.patched() == {"monai": ("DiceLoss",)}
    two.undo()
    assert theirs.DiceLoss.forward is original
    segfuse.patch("monai")
    segfuse.patch("monai")
    segfuse.unpatch("monai")
    assert theirs.DiceLoss.forward is original


def test_only_and_exclude():
    segfuse.patch("monai", only=["DiceLoss", "FocalLoss"], exclude=["FocalLoss"])
    assert segfuse.patched() == {"monai": ("DiceLoss",)}
    for call, text in (
        (lambda: segfuse.patch("other"), "'monai', 'smp'"),
        (lambda: segfuse.patch("torch"), "must be one of"),
        (lambda: segfuse.patch("monai", only=["Other"]), "knows no Other"),
        (lambda: segfuse.unpatch("other"), "must be one of"),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_hooks_and_situations_go_to_the_library(calls):
    class Mine(theirs.GeneralizedDiceLoss):
        def w_func(self, grnd):
            return torch.ones_like(grnd) * 2

    class Named(theirs.DiceLoss):
        """Overrides nothing."""

    mine, named, plain = Mine(**OPTIONS), Named(**OPTIONS), theirs.DiceLoss(softmax=True)
    expected = mine(D.x, LABELS)
    with segfuse.patch("monai"):
        assert passes(calls, mine) == 0
        torch.testing.assert_close(mine(D.x, LABELS), expected)
        assert passes(calls, named) == 1
        before = calls["formula_forward"]
        torch.func.vmap(lambda x, y: plain(x[None], y[None]))(D.x, D.hot)
        torch.compile(plain, backend="eager")(D.x, D.hot)
        assert calls["formula_forward"] == before


def test_a_version_that_was_not_verified(monkeypatch):
    module = __import__("sys").modules["segfuse.patch"]
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "9.9.9")
    with pytest.warns(UserWarning, match=r"verified with monai 1\.6\.\*; this is 9\.9\.9"):
        segfuse.patch("monai")


def test_another_signature_stays(monkeypatch):
    def forward(self, input, target, more=None):
        return input.sum()

    monkeypatch.setattr(theirs.TverskyLoss, "forward", forward)
    with pytest.warns(UserWarning, match="TverskyLoss with another signature"):
        segfuse.patch("monai")
    assert theirs.TverskyLoss.forward is forward
    assert "TverskyLoss" not in segfuse.patched()["monai"]


def test_torch_is_never_touched():
    before = {name: getattr(torch.nn.functional, name) for name in dir(torch.nn.functional)}
    for name in ("monai", "kornia"):
        segfuse.patch(name)
    assert all(getattr(torch.nn.functional, name) is x for name, x in before.items())


@pytest.mark.parametrize("name", ["DiceLoss", "DiceCELoss", "TverskyLoss"])
def test_a_trace_and_a_script_are_the_librarys_own(name, calls):
    with segfuse.patch("monai"):
        loss = getattr(theirs, name)(**OPTIONS)
        expected = loss(D.x, LABELS)
        for graph in (torch.jit.trace(loss, (D.x, LABELS)), torch.jit.script(loss)):
            assert passes(calls, graph) == 0
            torch.testing.assert_close(graph(D.x, LABELS), expected, rtol=1e-6, atol=1e-8)
        assert passes(calls, loss) == 1  # it stays as it was
