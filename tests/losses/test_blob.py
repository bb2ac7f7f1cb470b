"""Blob loss: one pass, equal to the loop over blobs that defines it."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage
from torch import Tensor

import segfuse as sf
from all_losses import problem
from compare import close, evaluate

CRITERIA = {
    "dice": sf.DiceLoss(smooth=(0.3, 0.7)),
    "focal": sf.FocalLoss(gamma=1.5),
    "tversky": sf.FocalTverskyLoss(alpha=0.1, beta=0.9),
    "balanced": sf.BalancedCrossEntropyLoss(),
    "compound": 0.5 * sf.CrossEntropyLoss() + sf.DiceLoss(squared=True),
}


def by_loop(criterion: sf.losses._base.Loss, x: Tensor, y: Tensor, weights: tuple[float, float]) -> Tensor:
    """The definition, for one channel."""
    samples = []
    for z, target in zip(x, y):
        found, count = ndimage.label((target[0] == 1).numpy(), torch.ones((3,) * target[0].ndim).numpy())
        blobs = torch.from_numpy(found)[None]
        values = []
        for b in range(1, count + 1):
            others = (blobs > 0) & (blobs != b)
            gone = others | (target == -100)
            values.append(criterion(z[None], torch.where(gone, -100, (blobs == b).long())[None]))
        if values:
            samples.append(torch.stack(values).mean())
    blob = torch.stack(samples).mean() if samples else x.sum() * 0
    return weights[0] * criterion(x, y) + weights[1] * blob


def spots(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    y = (torch.rand(shape, generator=random) < 0.12).long()
    y = torch.where(torch.rand(shape, generator=random) < 0.05, -100, y)
    y[-1] = 0  # a sample without blobs
    return torch.randn(shape, generator=random, dtype=torch.float64), y


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("shape", [(3, 1, 11, 13), (2, 1, 5, 7, 6), (2, 1, 40)], ids=str)
def test_is_the_loop_over_blobs(backend, name, shape):
    x, y = spots(shape)
    criterion = CRITERIA[name]
    loss = sf.BlobLoss(criterion, weight_global=0.5, weight_blob=3.0)
    found = evaluate(loss, x, y)
    expected = evaluate(lambda x, y: by_loop(criterion, x, y, (0.5, 3.0)), x, y)
    close(found[0], expected[0], 1e-12)
    close(found[1], expected[1], 1e-11)


def test_one_pass_whatever_the_number_of_blobs(calls):
    x, y = spots((2, 1, 64, 64))
    x.requires_grad_()
    sf.BlobLoss()(x, y).backward()
    assert calls == {"pixel_stats_forward": 1, "pixel_stats_backward": 1}


def test_explained(backend):
    for mode in ("binary", "multiclass"):
        assert f"pixel_stats on {backend}: one pass" in sf.explain(sf.BlobLoss(), *problem(mode))


def test_instances_given(backend):
    """The numbers do not matter, only what they tell apart; the background of the target stays background."""
    y = torch.tensor([[[0, 1, 1, 1, 0, 1, 0]], [[0, 1, 1, 0, 0, 1, 1]]])
    one = torch.tensor([[[0, 5, 5, 9, 9, 2, 0]], [[0, 5, 5, 0, 0, 5, 5]]])
    x = torch.linspace(-2, 2, 14, dtype=torch.float64).reshape(2, 1, 7)
    found = sf.BlobLoss(weight_global=0.0)(x, y, instances=one)
    dice = sf.DiceLoss()
    values = []
    for n, numbers in enumerate(([5, 9, 2], [5])):
        each = []
        for k in numbers:
            own = (one[n] == k) & (y[n] == 1)
            each.append(dice(x[n : n + 1], torch.where((y[n] == 1) & ~own, -100, own.long())[None]))
        values.append(torch.stack(each).mean())
    close(found, torch.stack(values).mean(), 1e-13)
    close(sf.BlobLoss(weight_global=0.0)(x, y, instances=one * 1000), found, 1e-14)
    with pytest.raises(ValueError, match="Try:"):
        sf.BlobLoss()(x, y, instances=one[:1])
    with pytest.raises(TypeError, match="no distance_map"):
        sf.BlobLoss()(x, y, distance_map=one)


@pytest.mark.parametrize("mode", ["multilabel", "multiclass"])
def test_every_class_has_its_blobs(backend, mode):
    x, y = problem(mode, (7, 8))
    p = torch.softmax(x, 1) if mode == "multiclass" else torch.sigmoid(x)
    masks = torch.nn.functional.one_hot(y, 3).movedim(-1, 1) if mode == "multiclass" else y
    first = 1 if mode == "multiclass" else 0
    alone = sf.BlobLoss(weight_global=0.0, from_logits=False)
    parts = [
        alone(p[n : n + 1, c : c + 1], masks[n : n + 1, c : c + 1])
        for n in range(2)
        for c in range(first, 3)
        if masks[n, c].any()
    ]
    close(sf.BlobLoss(weight_global=0.0, mode=mode)(x, y), torch.stack(parts).mean(), 1e-12)


def test_segments_are_the_sum_over_their_pixels(backend):
    """Runs that cross tiles and chunks, on one and on two threads."""
    from segfuse.ops import pixel_stats as op

    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 1, 70, 71, generator=random)
    y = (torch.rand(3, 1, 70, 71, generator=random) < 0.5).long()
    number = torch.randint(0, 9, (3, 70, 71), generator=random, dtype=torch.int32)
    tensors, g = op.check(x, y)
    plan = op.Plan(["tp", "pred", "count", (op.Term("focal", 2.0), 0)])
    found = op.sums(tensors, g, plan, op.Segments(number, 9))
    for k in range(9):
        part, _ = op.check(x, y, mask=number == k)
        close(found[:, k, 0], op.sums(part, g, plan).sum((1, 2)), 1e-6)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(op.sums(tensors, g, plan, op.Segments(number, 9)), found)
    finally:
        torch.set_num_threads(before)
    for wrong in (number.long(), number[:2], number - 1, number + 1):
        with pytest.raises(ValueError, match=r"segments must be .*Try:"):
            op.sums(tensors, g, plan, op.Segments(wrong, 9))
