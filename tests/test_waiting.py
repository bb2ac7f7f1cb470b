"""No loss waits for a GPU: with the checks that look at values switched off as they are there, none reads one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import segfuse as sf
from all_losses import ALL, IDS, problem
from cases import CASES, make
from compare import close, evaluate, same
from hard_pairs import FAST, HARD
from segfuse.backends import available, use_backend
from segfuse.losses import _distance
from segfuse.ops import _hard_pair, local_moments, pairwise_hausdorff, pixel_stats

READ = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.unique_dim"}
SCIPY = ("BlobLoss", "UNetWeightedCrossEntropyLoss")  # find connected components on the CPU
WITH_KERNELS = [name for name in available("pixel_stats") if name == "cuda"]


class Blind(TorchDispatchMode):
    """Refuses what a GPU would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rsplit(".", 1)[0]
        masked = name == "aten.index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert name not in READ and not masked, f"{name} reads a value"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_gpu(monkeypatch):
    """Checks do as they do for tensors on a GPU."""
    for module in (_hard_pair, _distance, local_moments, pairwise_hausdorff, pixel_stats):
        monkeypatch.setattr(module, "may_look", lambda x: False)


@pytest.mark.parametrize("backend", WITH_KERNELS)
@pytest.mark.parametrize(("variant", "mode"), ALL, ids=IDS)
def test_no_loss_reads_a_value(on_gpu, variant, mode, backend):
    loss = variant(mode=mode)
    if type(loss).__name__ in SCIPY:
        pytest.skip("waits for connected components")
    x, y = problem(mode)
    expected = evaluate(loss, x, y)
    with use_backend(backend):
        evaluate(loss, x, y)  # moves its tables
        x = x.detach().requires_grad_()
        with Blind():
            value = loss(x, y)
            (grad,) = torch.autograd.grad(value.sum(), x)
    close(value, expected[0], 1e-10)
    close(grad, expected[1], 1e-9)


@pytest.mark.parametrize("name", HARD)
def test_pairs_are_the_same(on_gpu, name):
    input, target, call = make(CASES[name], torch.float64)
    checked = pixel_stats.check(input, target, **call)
    blind = _hard_pair.hard_pair(*checked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_hard_pair, "may_look", lambda x: True)
        pair = _hard_pair.hard_pair(*checked)
    assert blind.index == pair.index
    for found, expected in ((blind.code, pair.code), (blind.p, pair.p), (blind.u, pair.u)):
        assert same(found, expected)
    assert same(blind.counts(), pair.counts())


def broken(mode: str) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
    """What is out of range in the second sample."""
    x, y = problem(mode)
    found = []
    if mode == "multiclass":
        hot = torch.nn.functional.one_hot(y, x.shape[1]).movedim(-1, 1).double()
        wrongs = [(y, 77), (y, -1), (y.double(), 1.5), (hot, 0.25), (hot, 1.0)]
    else:
        wrongs = [(y, 2), (y, -1), (y.double(), 0.25)]
    for labels, wrong in wrongs:
        labels = labels.clone()
        labels[(1, *[slice(None) if wrong == 1 else 0] * (labels.ndim - 3), 0, 0)] = wrong
        found.append((x, labels, {}))
    weight = torch.ones(y.shape[0], *x.shape[2:])
    weight[1, 0, 0] = -1
    return [*found, (x, y, {"weight_map": weight})]


@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize("loss", [sf.HausdorffERLoss, sf.HausdorffCVLoss, sf.WeightedHausdorffLoss])
def test_what_does_not_fit_gives_nan(on_gpu, loss, mode, backend):
    for x, y, call in broken(mode):
        with use_backend(backend), Blind() if backend == "cuda" else nullcontext():
            value = loss(mode=mode, reduction="none", include_background=True)(x, y, **call)
        assert value[1].isnan().any() and value[0].isfinite().all()


@pytest.mark.parametrize(
    "loss", [sf.HausdorffDTLoss, sf.BoundaryLoss, sf.ShapeAwareLoss, sf.DistanceMapCrossEntropyLoss]
)
def test_soft_targets_give_nan(on_gpu, loss):
    x, y = problem("binary")
    assert loss()(x, y).isfinite() and loss()(x, y.double()).isfinite()
    assert loss()(x, y * 0.5).isnan()
    assert loss()(x, torch.where(y == 0, 0.5, y), mask=y).isfinite()


@pytest.mark.parametrize("backend", [*WITH_KERNELS, "reference"])
@pytest.mark.parametrize("form", pairwise_hausdorff.FORMS)
def test_points_that_are_not_finite_give_nan(on_gpu, form, backend):
    x, _ = problem("binary")
    points = [torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])] * len(x)
    with use_backend(backend):
        assert sf.WeightedHausdorffLoss(form=form)(x, points).isnan()
