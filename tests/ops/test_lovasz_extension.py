"""Losses and gradients of every problem: backends against the reference, the reference against its definition."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import segfuse
from cases import CASES, LABELS, Case, lay_out, make
from compare import FLOOR, close, largest, same, within_rounding
from segfuse.backends import available, use_backend
from segfuse.ops import lovasz_extension as op
from segfuse.ops.pixel_stats import check

FAST = [name for name in available("lovasz_extension") if name != "reference"]
HARD = [name for name, case in CASES.items() if case.target != "soft" and not case.one_vs_rest]


def run(backend: str, x: Tensor, y: Tensor, per_image: bool, classes: Any, call: dict[str, Any]) -> tuple[Tensor, ...]:
    call = {name: value for name, value in call.items() if name != "weight_map"}
    with use_backend(backend):
        x = x.detach().requires_grad_()
        tensors, g = check(x, y, **call)
        value, positives = op.lovasz(tensors, g, op.problems(g, per_image, classes))
        scale = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype, device=x.device).reshape(value.shape)
        (grad,) = torch.autograd.grad((value * scale).sum(), x)
    return value.detach(), positives, grad


def definition(errors: Tensor, positive: Tensor, hinge: bool) -> Tensor:
    """sum_k e_(k) (J_k - J_(k-1))"""
    order = errors.sort(descending=True, stable=True).indices
    e, y = errors[order], positive[order].to(errors.dtype)
    J = 1 - (y.sum() - y.cumsum(0)) / (y.sum() + (1 - y).cumsum(0))
    return ((e.clamp(min=0) if hinge else e) * torch.diff(J, prepend=J.new_zeros(1))).sum()


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_reference_is_the_definition(mode):
    x, y, call = make(Case((2, 1 if mode == "binary" else 3, 7, 5), mode=mode, target="index"), torch.float64)
    y = (y > 0).long().where(y >= 0, -100)[:, None] if mode == "binary" else y
    value = run("reference", x, y, False, "all", call)[0]
    kept = y[:, 0] != -100 if mode == "binary" else y != -100
    for c in range(x.shape[1]):
        if mode == "binary":
            t = y[:, 0][kept].double()
            expected = definition(1 - x[:, 0][kept] * (2 * t - 1), t, True)
        else:
            t = (y[kept] == c).double()
            expected = definition((t - x.softmax(1)[:, c][kept]).abs(), t, False)
        close(value[0, c], expected, 1e-12)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("per_image", [False, True], ids=["batch", "image"])
@pytest.mark.parametrize("case", HARD)
def test_matches_reference(backend, case, per_image, dtype):
    x, y, call = make(CASES[case], dtype)
    for classes in ("present", "all") if backend != "cuda" else ("present",) if per_image else ("all",):
        exact = run("reference", x.double(), y, per_image, classes, call)
        plain = run("reference", x, y, per_image, classes, call)
        fast = run(backend, x, y, per_image, classes, call)
        assert same(fast[1], exact[1])
        within_rounding(fast[0], plain[0], exact[0], dtype, "value")
        assert same(fast[2].isfinite(), plain[2].isfinite())
        error = (fast[2].double() - exact[2]).nan_to_num()
        allowed = 2 * (plain[2].double() - exact[2]).nan_to_num().abs().max() if error.numel() else 0
        beyond = error.abs() > allowed + FLOOR[dtype] * largest(exact[2])
        # Two errors that rounding makes change places swap their weights, in float64 never.
        assert int(beyond.sum()) <= (0 if dtype == torch.float64 else error.numel() // 50)
        assert not beyond.any() or error.abs().max() <= 0.05 * largest(exact[2])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("labels", LABELS, ids=str)
@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_every_label_dtype(backend, mode, labels):
    case = Case((2, 2, 9, 13)) if mode == "multiclass" else Case((2, 1, 9, 13), mode="binary", target="hard")
    x, y, call = make(case, torch.float32, labels)
    expected = run("reference", x.double(), y, True, "all", call)
    found = run(backend, x, y, True, "all", call)
    close(found[0], expected[0], 1e-6)
    close(found[2], expected[2], 2e-6)


# ------------------------------------------------------------------------------------------- order


SHAPES = {"many_runs": (1, 1, 700_001), "many_samples": (300, 1, 33, 31), "wide": (3, 1, 401, 403)}
#: each a run of several tiles, as on a GPU that has many
EMULATED = {"many_runs": (1, 1, 100_001), "many_samples": (30, 1, 33, 31), "wide": (9, 1, 101, 103)}


def tricky(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Errors of every size, many of them equal; few pixels of the class."""
    random = torch.Generator().manual_seed(1)
    y = torch.rand(shape, generator=random) < 0.02
    size = torch.exp2(torch.randint(-40, 9, shape, generator=random).double())
    x = torch.randn(shape, generator=random, dtype=torch.float64) * size
    x = torch.where(torch.rand(shape, generator=random) < 0.3, x.mul(4).round() / 4, x)
    return x.to(dtype), y


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("per_image", [False, True], ids=["batch", "image"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_order_is_exact(backend, shape, dtype, per_image):
    """The gradient is the weight by rank alone: two pixels in the wrong order, and it differs."""
    x, y = tricky((EMULATED if backend == "cuda" else SHAPES)[shape], dtype)
    expected = run("reference", x, y, per_image, "all", {})
    found = run(backend, x, y, per_image, "all", {})
    off = (found[2] - expected[2]).abs()
    assert bool((off <= 3e-7 * expected[2].abs()).all())
    close(found[0], expected[0], 1e-12)


@pytest.mark.parametrize("backend", FAST)
def test_equal_errors_go_by_index(backend):
    x = torch.zeros(2, 1, 3, 1000)
    y = torch.arange(6000).reshape(2, 1, 3, 1000) % 7 == 3
    for per_image in (False, True):
        assert same(run(backend, x, y, per_image, "all", {})[2], run("reference", x, y, per_image, "all", {})[2])


@pytest.mark.parametrize("backend", [name for name in FAST if name != "cuda"])
def test_same_bits_for_any_number_of_threads(backend, threads):
    problems = [(*tricky((1, 1, 800_001), torch.float32), {}), (*tricky((5, 1, 301, 203), torch.float32), {})]
    problems.append(make(Case((3, 5, 301, 203)), torch.float32))
    for x, y, call in problems:
        for per_image in (False, True):
            found = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(run(backend, x, y, per_image, "present", call))
            assert all(same(a, b) for other in found[1:] for a, b in zip(found[0], other))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "permuted", "stepped", "offset"])
def test_layouts(backend, layout):
    x, y, call = make(Case((2, 3, 8, 9)), torch.float32)
    expected = run(backend, x, y, False, "present", call)
    found = run(backend, lay_out(x, layout), lay_out(y, layout), False, "present", call)
    assert all(same(a, b) for a, b in zip(found, expected))


def test_backward_twice(backend):
    """The first gradient is written over what the second needs."""
    x, y, _ = make(Case((2, 3, 8, 9)), torch.float64)
    x.requires_grad_()
    value = segfuse.lovasz_extension(x, y).sum()
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(3 * value, x)
    assert same(first, kept)
    close(second, 3 * kept, 1e-14)


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_second_derivatives(backend, mode):
    x, y, _ = make(Case((1, 3, 5), ignored="none"), torch.float64)
    x, y = (x[:, :1], (y == 0)[:, None]) if mode == "binary" else (x, y)
    assert torch.autograd.gradgradcheck(lambda x: segfuse.lovasz_extension(x, y).sum(), x.requires_grad_())


# ------------------------------------------------------------------------------------------- without a gradient

MANY = {"40_classes": Case((2, 40, 37, 11)), "131_classes": Case((2, 131, 3, 5))}


@pytest.mark.parametrize("backend", available("lovasz_extension"))
@pytest.mark.parametrize("per_image", [False, True], ids=["batch", "image"])
@pytest.mark.parametrize("case", [*HARD, *MANY])
def test_without_a_gradient(backend, case, per_image):
    """Classes are sorted a few at a time: the same bits."""
    x, y, call = make((CASES | MANY)[case], torch.float32)
    call = {name: value for name, value in call.items() if name != "weight_map"}
    with use_backend(backend):
        for classes in ("present", [x.shape[1] - 1]):
            found = []
            for grad in (False, True):
                tensors, g = check(x.detach().requires_grad_(grad), y, **call)
                found.append(op.lovasz(tensors, g, op.problems(g, per_image, classes)))
            assert found[1][0].requires_grad
            assert all(same(a, b.detach()) for a, b in zip(*found))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("per_image", [False, True], ids=["batch", "image"])
@pytest.mark.parametrize("grad", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_wrong_labels_are_found_in_every_class(backend, mode, grad, per_image):
    """On a GPU, which nobody waits for, they make their problem NaN."""
    x = torch.zeros(2, 9, 4, 5, requires_grad=grad)
    y = torch.zeros((2, 4, 5) if mode == "multiclass" else (2, 9, 4, 5), dtype=torch.int64)
    y[1, -1, -1] = 9
    how: dict[str, Any] = {"mode": mode, "classes": "all", "per_image": per_image}
    with use_backend(backend):
        if backend != "cuda":
            with pytest.raises(ValueError, match="got 9"):
                segfuse.lovasz_extension(x, y, **how)
            return
        value = segfuse.lovasz_extension(x, y, **how)
        broken = torch.ones(value.shape, dtype=torch.bool)
        if per_image:
            broken[0] = False
        if mode == "multilabel":
            broken[:, :-1] = False
        assert torch.equal(value.isnan(), broken)
        if grad:
            value.sum().backward()
            assert x.grad[1, -1].isnan().any() and (not per_image or x.grad[0].isfinite().all())


def test_memory_without_a_gradient():
    """An eighth of the logits, a class to sort, and what sorting takes; with one, as much as the gradient."""
    code = """
import re, torch, segfuse
torch.set_num_threads(2)
x, y = torch.randn(1, 64, 512, 512), torch.randint(0, 64, (1, 512, 512))
segfuse.lovasz_extension(x[..., :8], y[..., :8])
kib = lambda name: int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
for kept in (False, True):
    x.requires_grad_(kept)
    open("/proc/self/clear_refs", "w").write("5")  # VmHWM, the peak, starts anew
    before = kib("VmRSS")
    value = segfuse.lovasz_extension(x, y)
    print((kib("VmHWM") - before) * 1024 / x.nbytes)
"""
    if not sys.platform.startswith("linux") or not FAST:
        pytest.skip("measured on Linux, of the extension")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    without, with_one = map(float, done.stdout.split())
    assert without < 0.3
    assert 0.9 < with_one < 1.2


# ------------------------------------------------------------------------------------------- instruction sets


@pytest.mark.skipif("SEGFUSE_ISA" in os.environ, reason="one is forced already")
@pytest.mark.parametrize("isa", segfuse._cpp.isa_info()["found"] if "cpp" in FAST else [])
def test_every_instruction_set(isa):
    if isa == segfuse._cpp.isa_info()["used"]:
        return  # this process has just done it
    chosen = "(test_matches_reference and float32 and (odd_2d or 33_classes or binary)) or order_is_exact"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
    done = subprocess.run(command, env={**os.environ, "SEGFUSE_ISA": isa}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
