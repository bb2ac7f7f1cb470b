"""Every loss as one operator of a compiled graph: no break, and the values and gradients of eager code."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch

import segfuse as sf
from all_losses import ALL, IDS, problem
from compare import close, same

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(loss, **how):
    """The loss with work around it that is compiled too."""
    return torch.compile(lambda x, y: 3 * loss(x * 2, y), fullgraph=True, **how)


@pytest.mark.parametrize(("variant", "mode"), ALL, ids=IDS)
def test_every_loss(variant, mode):
    """By the eager backend of torch.compile, which traces like the others and compiles nothing."""
    loss = variant(mode=mode)
    x, y = problem(mode, dtype=torch.float32)
    x.requires_grad_()
    call = torch.compile(lambda x, y: 3 * loss(x * 2, y), fullgraph=True, backend="aot_eager")
    value, expected = call(x, y), 3 * loss(x * 2, y)
    assert same(value.detach(), expected.detach())
    (grad,) = torch.autograd.grad(value, x)
    (expected_grad,) = torch.autograd.grad(expected, x)
    close(grad, expected_grad.double(), 1e-5)


@pytest.mark.parametrize(("variant", "mode"), ALL, ids=IDS)
def test_without_reduction(variant, mode):
    try:
        loss = variant(mode=mode, reduction="none")
    except ValueError:
        pytest.skip("it has one number only")
    x, y = problem(mode, dtype=torch.float32)
    x.requires_grad_()
    value, expected = compiled(loss, backend="aot_eager")(x, y), 3 * loss(x * 2, y)
    assert same(value.detach(), expected.detach())
    close(torch.autograd.grad(value.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0].double(), 1e-5)


@pytest.mark.parametrize("make", [sf.BlobLoss, sf.UNetWeightedCrossEntropyLoss], ids=["blob", "unet"])
def test_instances(make):
    loss = make(mode="multiclass")
    x, y = problem("multiclass", dtype=torch.float32)
    instances = torch.arange(y.numel()).reshape(y.shape) % 4
    call = torch.compile(lambda x, y, i: loss(x, y, instances=i), fullgraph=True, backend="aot_eager")
    x.requires_grad_()
    value, expected = call(x, y, instances), loss(x, y, instances=instances)
    assert same(value.detach(), expected.detach())
    close(torch.autograd.grad(value, x)[0], torch.autograd.grad(expected, x)[0].double(), 1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "make",
    [sf.DiceLoss, lambda: 0.5 * sf.FocalLoss() + sf.DiceLoss(), sf.LovaszLoss, sf.HausdorffDTLoss, sf.SSIMLoss],
    ids=["dice", "sum", "lovasz", "hausdorff", "ssim"],
)
def test_inductor(make, dynamic):
    loss = make()
    call = compiled(loss, dynamic=dynamic)
    for shape in ((2, 3, 16, 17), (2, 3, 20, 12), (4, 3, 13, 18)):
        x, y = torch.randn(shape, requires_grad=True), torch.randint(0, 3, (shape[0], *shape[2:]))
        value, expected = call(x, y), 3 * loss(x * 2, y)
        close(value, expected.double(), 1e-6)
        close(torch.autograd.grad(value, x)[0], torch.autograd.grad(expected, x)[0].double(), 1e-6)


def test_dynamic_shapes_compile_once():
    count = torch._dynamo.testing.CompileCounter()
    call = torch.compile(sf.DiceLoss(), fullgraph=True, dynamic=True, backend=count)
    for size in (16, 18, 23):
        call(torch.randn(2, 3, size, size + 1), torch.randint(0, 3, (2, size, size + 1)))
    assert count.frame_count == 1


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"reduction": "none", "batch": True}], ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_formulas_that_run_on_tensors(dynamic, options):
    """Also one with a branch, which the tensors without values of torch.compile could not take."""
    loss = sf.RegionLoss(lambda s: s.tp / (s.true + 1) if s.tp.sum() > 3 else 1 - s.pred2.sigmoid(), **options)
    call = compiled(loss, backend="aot_eager", dynamic=dynamic)
    for n in (2, 5):
        x, y = torch.randn(n, 3, 6, 7, requires_grad=True), torch.randint(0, 3, (n, 6, 7))
        value, expected = call(x, y), 3 * loss(x * 2, y)
        assert same(value.detach(), expected.detach())
        close(torch.autograd.grad(value.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0].double(), 1e-5)


def test_points():
    loss = sf.WeightedHausdorffLoss()
    x = torch.randn(2, 1, 8, 9, requires_grad=True)
    points = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 5.0]])]
    value, expected = compiled(loss, backend="aot_eager")(x, points), 3 * loss(x * 2, points)
    assert same(value.detach(), expected.detach())
    close(torch.autograd.grad(value, x)[0], torch.autograd.grad(expected, x)[0].double(), 1e-5)


def test_terms_weights_and_masks():
    loss = sf.DiceLoss() + sf.CrossEntropyLoss()
    x, y = problem("multiclass", dtype=torch.float32)
    maps = {"weight_map": torch.rand(y.shape), "mask": torch.rand(y.shape) > 0.3}
    call = torch.compile(lambda x, y: loss(x, y, return_terms=True, **maps), fullgraph=True, backend="aot_eager")
    (value, terms), (expected, expected_terms) = call(x, y), loss(x, y, return_terms=True, **maps)
    assert same(value, expected) and list(terms) == list(expected_terms)
    assert all(same(terms[name], expected_terms[name]) for name in terms)


def test_gradient_by_a_parameter():
    loss = sf.TLoss()
    x, y = problem("binary", dtype=torch.float32)
    compiled(loss, backend="aot_eager")(x, y).backward()
    found, loss.nu_tilde.grad = loss.nu_tilde.grad, None
    (3 * loss(x * 2, y)).backward()
    close(found, loss.nu_tilde.grad.double(), 1e-6)


def test_a_model_and_its_loss():
    model, loss = torch.nn.Conv2d(2, 3, 3, padding=1), sf.DiceCELoss()
    step = torch.compile(lambda x, y: loss(model(x), y), fullgraph=True)
    x, y = torch.randn(2, 2, 16, 16), torch.randint(0, 3, (2, 16, 16))
    step(x, y).backward()
    found = model.weight.grad.clone()
    model.zero_grad()
    loss(model(x), y).backward()
    close(found, model.weight.grad.double(), 1e-5)


def test_a_list_of_outputs():
    loss = sf.DeepSupervisionLoss()
    outputs = [torch.randn(2, 3, size, size, requires_grad=True) for size in (16, 8)]
    y = torch.randint(0, 3, (2, 16, 16))
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(outputs, y)
    close(value, loss(outputs, y).double(), 1e-6)
    value.backward()
    assert all(x.grad is not None for x in outputs)


def test_settings_changed_later_and_copies():
    loss = sf.TverskyLoss(alpha=0.3, beta=0.7)
    x, y = problem("multiclass", dtype=torch.float32)
    call = torch.compile(loss, fullgraph=True, backend="aot_eager")
    first = call(x, y)
    twin, thawed = copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))
    loss.alpha = 0.9
    assert same(call(x, y), loss(x, y)) and not same(call(x, y), first)
    for other in (twin, thawed):
        assert same(torch.compile(other, fullgraph=True, backend="aot_eager")(x, y), first)


def test_labels_out_of_range_raise():
    loss = torch.compile(sf.DiceLoss(), fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="got 7"):
        loss(torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 7))


def test_graphs_on_disk_belong_to_one_process(tmp_path):
    """The first loss of two processes are different ones, in graphs that are equal but for that."""
    code = """
import sys, torch, segfuse as sf
loss = sf.DiceLoss() if sys.argv[1] == "dice" else sf.DiceCELoss()
x, y = torch.ones(2, 3, 8, 8, requires_grad=True), torch.zeros(2, 8, 8, dtype=torch.long)
torch.compile(lambda x, y: 3 * loss(x * 2, y), fullgraph=True)(x, y).backward()
"""
    for which in ("dice", "dice and cross-entropy"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, which],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]


def test_operators_are_well_defined():
    x, y = problem("multiclass", dtype=torch.float32)
    x.requires_grad_()
    for loss in (sf.DiceCELoss(), sf.LovaszLoss(), sf.TLoss()):
        parameters = list(loss.parameters())
        arguments = (loss.compiled_name, x, y, [], parameters, True, None, None, None, None)
        torch.library.opcheck(torch.ops.segfuse.loss.default, arguments)


def test_export():
    program = torch.export.export(sf.DiceLoss(), (torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 8, 8))))
    x, y = torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 8, 8))
    assert same(program.module()(x, y), sf.DiceLoss()(x, y))
