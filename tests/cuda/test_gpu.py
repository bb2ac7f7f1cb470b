"""The kernels on a real GPU: the shared table of cases against float64, and what an emulation cannot show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import segfuse as sf
from all_losses import ALL, IDS, problem
from cases import CASES, make
from compare import FLOOR, close, same, within_rounding
from segfuse.backends import use_backend
from segfuse.ops import pixel_stats as op
from segfuse.ops.pixel_stats import Plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
    pytest.mark.skipif(sf.backends.why_not("pixel_stats")["cuda"] is not None, reason="the CUDA kernels cannot run"),
]


def on_gpu(x: Any) -> Any:
    """A copy on the GPU with the same strides."""
    if not isinstance(x, Tensor):
        return x
    there = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
    return there.copy_(x) if x.numel() and 0 not in x.stride() else x.cuda()


@pytest.fixture(autouse=True)
def side_stream():
    """Everything runs on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield stream
    torch.cuda.synchronize()


def evaluate(loss: Any, x: Tensor, y: Tensor, **call: Any) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = loss(x, y, **call)
    (grad,) = torch.autograd.grad(value.sum(), x)
    return value.detach().cpu(), grad.cpu()


# ------------------------------------------------------------------------------------------- the shared table


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_pixel_stats(case, dtype):
    from ops import test_pixel_stats as shared

    x, y, call = make(CASES[case], dtype)
    call["distance_map"] = shared.distances(x, call, True)
    plan = Plan(shared.EVERYTHING)
    exact = shared.run("reference", *op.check(x.double(), y, **call), plan)
    plain = shared.run("reference", *op.check(x, y, **call), plan)
    tensors, g = op.check(on_gpu(x), on_gpu(y), **{name: on_gpu(value) for name, value in call.items()})
    k = shared.coefficients(g, plan).cuda()
    with use_backend("cuda"), torch.no_grad():
        sums, grad = op.forward(tensors, g, plan).cpu(), op.backward(tensors, g, plan, k).cpu()
    for row in shared.rows(g, plan):
        name = f"sum of {row}"
        within_rounding(sums[plan.row(row)], plain[name], exact[name], dtype, name)
    within_rounding(grad, plain["gradient"], exact["gradient"], dtype, "gradient")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("variant", "mode"), ALL, ids=IDS)
def test_every_loss(variant, mode, dtype):
    x, y = problem(mode, dtype=dtype)
    value, grad = evaluate(variant(mode=mode), x, y)
    found, found_grad = evaluate(variant(mode=mode).cuda(), x.cuda(), y.cuda())
    close(found, value.double(), 1e-10 if dtype == torch.float64 else 2e-5)
    close(found_grad, grad.double(), 1e-9 if dtype == torch.float64 else 2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("per_image", [False, True], ids=["batch", "image"])
@pytest.mark.parametrize("shape", [(1, 1, 3_000_017), (300, 1, 65, 67), (3, 1, 1001, 1003)], ids=str)
def test_order_of_lovasz(shape, per_image, dtype):
    """As many pixels as it takes to fill the device; hinge errors are the same bits everywhere."""
    from ops import test_lovasz_extension as shared

    x, y = shared.tricky(shape, dtype)
    expected = shared.run("reference", x, y, per_image, "all", {})
    found = [t.cpu() for t in shared.run("cuda", x.cuda(), y.cuda(), per_image, "all", {})]
    close(found[0], expected[0], 1e-12)
    assert same(found[1], expected[1])
    assert bool(((found[2] - expected[2]).abs() <= 3e-7 * expected[2].abs()).all())


# ------------------------------------------------------------------------------------------- streams, graphs, scaling

LOSSES = {
    "dice": lambda: sf.DiceLoss(),
    "compound": lambda: 0.5 * sf.FocalLoss() + sf.DiceLoss() + sf.CrossEntropyLoss(),
    "hausdorff": lambda: sf.HausdorffDTLoss(),
    "lovasz": lambda: sf.LovaszLoss(),
    "ssim": lambda: sf.SSIMLoss(),
}


def batch(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    random = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(2, 5, 65, 67, generator=random, device="cuda", dtype=torch.float32).to(dtype)
    return x, torch.randint(0, 5, (2, 65, 67), generator=random, device="cuda")


@pytest.mark.parametrize("name", LOSSES)
def test_the_same_bits_every_time(name):
    loss, (x, y) = LOSSES[name](), batch(0)
    first = evaluate(loss, x, y)
    for _ in range(20):
        assert all(same(a, b) for a, b in zip(evaluate(loss, x, y), first))


@pytest.mark.parametrize("name", LOSSES)
def test_no_call_waits_for_the_device(name):
    loss, (x, y) = LOSSES[name](), batch(0)
    evaluate(loss, x, y)
    x = x.requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(x, y).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", LOSSES)
def test_graph_with_new_inputs(name):
    loss, (x, y) = LOSSES[name](), batch(0)
    x.requires_grad_()
    for _ in range(3):
        torch.autograd.grad(loss(x, y), x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss(x, y)
        (grad,) = torch.autograd.grad(value, x)
    for seed in (1, 2):
        other, labels = batch(seed)
        with torch.no_grad():
            x.copy_(other)
            y.copy_(labels)
        graph.replay()
        torch.cuda.synchronize()
        expected, expected_grad = evaluate(loss, other, labels)
        assert same(value.detach().cpu(), expected) and same(grad.cpu(), expected_grad)


def test_gradient_scaling_in_half_precision():
    x, y = batch(0, torch.float16)
    loss = sf.DiceCELoss()
    _, plain = evaluate(loss, x.float(), y)
    scaled = x.requires_grad_()
    (loss(scaled, y) * 65536).backward()
    assert scaled.grad.dtype == torch.float16
    close(scaled.grad.cpu().double() / 65536, plain.double(), 2e-3)


def test_autocast_gives_a_float32_loss():
    x, y = batch(0)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        half = (x * 1).to(torch.bfloat16).requires_grad_()
        value = sf.DiceCELoss()(half, y)
    value.backward()
    assert value.dtype == torch.float32 and half.grad.dtype == torch.bfloat16


def test_a_device_that_is_not_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x, y = batch(0)
    expected = evaluate(sf.DiceCELoss(), x, y)
    assert torch.cuda.current_device() == 0
    found = evaluate(sf.DiceCELoss(), x.to("cuda:1"), y.to("cuda:1"))
    assert all(same(a, b) for a, b in zip(found, expected))


def test_labels_out_of_range_make_the_loss_nan():
    x, y = batch(0)
    y[1, 3, 4] = 77
    value, _ = evaluate(sf.DiceCELoss(), x, y)
    assert value.isnan()


def test_more_than_2_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 20 << 30:
        pytest.skip("needs 20 GiB of free memory")
    S = (1 << 31) + 12_345
    x = torch.zeros(1, 1, S, dtype=torch.float16, device="cuda")
    x[..., -1] = 2
    y = torch.zeros(1, 1, S, dtype=torch.uint8, device="cuda")
    y[..., -1] = 1
    sums = sf.pixel_stats(x, y, ("tp", "pred", "true", "n"))
    assert sums["n"].item() == S and sums["true"].item() == 1
    close(sums["tp"].cpu(), torch.sigmoid(torch.tensor([[2.0]], dtype=torch.float64)), 1e-6)
    close(sums["pred"].cpu(), torch.tensor([[0.5 * (S - 1) + 0.880797]], dtype=torch.float64), 1e-6)
    x.requires_grad_()
    sf.DiceLoss()(x, y).backward()
    assert x.grad[..., -1].item() != 0
