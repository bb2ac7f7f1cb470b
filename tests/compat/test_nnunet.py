"""``segfuse.compat.nnunet`` against the installed nnU-Net."""

from __future__ import annotations

import itertools

import pytest
import torch
from against import Data, agree, both_raise, outcome, peer, same_signature

from segfuse.compat import nnunet as ours

dice = peer("nnunetv2", "training.loss.dice")
compound = peer("nnunetv2", "training.loss.compound_losses")
robust = peer("nnunetv2", "training.loss.robust_ce_loss")
supervision = peer("nnunetv2", "training.loss.deep_supervision")

pytestmark = pytest.mark.filterwarnings("ignore")

MODULES = (dice, compound, robust, supervision)
D = Data()
LABELS = D.labels[:, None]
IGNORED = LABELS.clone()
IGNORED[0, 0, :2] = 3
NOTHING = torch.full_like(LABELS, 3)
WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
DICE = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}  # as the trainer has it


def their(name):
    return next(getattr(m, name) for m in MODULES if hasattr(m, name))


@pytest.mark.parametrize("name", [name for name in ours.__all__ if name != "softmax_helper_dim1"])
def test_signatures(name):
    same_signature(their(name), getattr(ours, name))


@pytest.mark.parametrize("name", ["SoftDiceLoss", "MemoryEfficientSoftDiceLoss"])
@pytest.mark.parametrize("activation", [ours.softmax_helper_dim1, torch.nn.Softmax(dim=1), torch.sigmoid, torch.tanh])
def test_dice(name, activation):
    mask = torch.rand((2, 1, 6, 7), generator=torch.Generator().manual_seed(1)) < 0.6
    variants = [{}, {"batch_dice": True}, {"do_bg": False}, DICE]
    variants += [{"clip_tp": 9.0}] if name == "SoftDiceLoss" else []
    for options, y in itertools.product(variants, (LABELS, LABELS.float(), D.labels, D.hot, LABELS.short())):
        options = {**options, "ddp": False, "apply_nonlin": activation}
        agree(their(name)(**options), getattr(ours, name)(**options), D.x, y, tol=1e-5)
        agree(their(name)(**options), getattr(ours, name)(**options), D.x, y, mask, tol=1e-5)
    v = Data(1, 4, (3, 4, 5))
    agree(their(name)(activation, ddp=False), getattr(ours, name)(activation, ddp=False), v.x, v.labels, tol=1e-5)


@pytest.mark.parametrize("name", ["SoftDiceLoss", "MemoryEfficientSoftDiceLoss"])
@pytest.mark.parametrize("more", [{}, {"label_smoothing": 0.1}, {"weight": WEIGHT}])
def test_dice_and_cross_entropy(name, more):
    for ignore, y in ((None, LABELS), (None, LABELS.float()), (3, IGNORED), (3, IGNORED.float()), (3, NOTHING)):
        for weights in ((1, 1), (0.3, 2), (0, 1)):
            losses = [
                m.DC_and_CE_loss(dict(DICE), dict(more), *weights, ignore_label=ignore, dice_class=d)
                for m, d in ((compound, getattr(dice, name)), (ours, getattr(ours, name)))
            ]
            agree(*losses, D.x, y, tol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
@pytest.mark.parametrize("ignore", [False, True])
def test_regions(dtype, ignore):
    y = torch.cat([D.multi, D.mask], 1).to(dtype) if ignore else D.multi.to(dtype)
    for more in ({}, {"pos_weight": torch.tensor(2.0)}, {"pos_weight": torch.tensor([0.5, 1, 2]).reshape(3, 1, 1)}):
        losses = [m.DC_and_BCE_loss(dict(more), dict(DICE), 0.5, 2, use_ignore_label=ignore) for m in (compound, ours)]
        agree(*losses, D.x, y, tol=1e-5)


def test_top_k():
    for (ignore, y), more in itertools.product(
        ((None, LABELS), (3, IGNORED), (3, NOTHING)), ({"k": 20}, {"k": 37.5, "label_smoothing": 0.1, "weight": WEIGHT})
    ):
        losses = [m.DC_and_topk_loss(dict(DICE), dict(more), 0.5, 2, ignore) for m in (compound, ours)]
        agree(*losses, D.x, y, tol=1e-5)


def test_robust_cross_entropy():
    for more, y in itertools.product(({}, {"weight": WEIGHT, "label_smoothing": 0.1}), (LABELS.float(), D.labels)):
        agree(robust.RobustCrossEntropyLoss(**more), ours.RobustCrossEntropyLoss(**more), D.x, y)


def test_deep_supervision():
    args = ([D.x, D.x, D.x], [LABELS] * 3)
    values = [
        w.DeepSupervisionWrapper(m.DC_and_CE_loss(dict(DICE), {}), (1, 0.5, 0))(*args)
        for w, m in ((supervision, compound), (ours, ours))
    ]
    torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=1e-6)
    for arguments in (((0.0, 0.0),),):
        both_raise(
            lambda a=arguments: supervision.DeepSupervisionWrapper(None, *a),
            lambda a=arguments: ours.DeepSupervisionWrapper(None, *a),
        )


def test_compiled_dice_term(calls):
    """The trainer compiles ``loss.dc``; it still shares the pass."""
    loss = ours.DC_and_CE_loss(dict(DICE), {})
    expected = outcome(loss, D.x, LABELS)
    loss.dc = torch.compile(loss.dc)
    before = calls["formula_forward"]
    found = outcome(loss, D.x, LABELS)
    assert calls["formula_forward"] == before + 1
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


def test_kwargs_are_changed_as_in_the_original():
    for m in (compound, ours):
        ce = {}
        loss = m.DC_and_CE_loss(dict(DICE), ce, ignore_label=3)
        assert ce == {"ignore_index": 3} and list(loss.state_dict()) == []


def test_batch_of_two_processes(tmp_path):
    """Batch Dice over unequal parts is that of the whole; the gradient adds up over processes."""
    if not torch.distributed.is_available():
        pytest.skip("torch has no distributed package")
    torch.multiprocessing.spawn(_worker, (str(tmp_path / "store"),), nprocs=2)


def _worker(rank, store):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    d = Data(3)
    part = slice(0, 1) if rank == 0 else slice(1, 3)
    options = {**DICE, "ddp": True}
    whole = ours.SoftDiceLoss(ours.softmax_helper_dim1, **{**options, "ddp": False})
    expected, slope = outcome(whole, d.x, d.labels)
    found, grad = outcome(ours.SoftDiceLoss(ours.softmax_helper_dim1, **options), d.x[part], d.labels[part])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grad, 2 * slope[part])  # each of the two processes has this loss
    torch.distributed.destroy_process_group()
