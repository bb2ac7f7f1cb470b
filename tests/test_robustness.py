"""What a long training run meets: any order of threads, no memory left, an interrupt, a tensor that goes away."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

import fuzz
import segfuse as sf
from all_losses import FIRST, problem
from cases import LABELS, holds
from compare import evaluate, same

pytest.importorskip("segfuse._cpp")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, limits memory")


def python(code: str, timeout: float = 120) -> str:
    """What the code prints, in a process of its own."""
    command = [sys.executable, "-c", "import gc, os, signal, threading, time, torch, segfuse as sf\n" + code]
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


# ------------------------------------------------------------------------------------------- random calls


def test_random_calls():
    """See fuzz.py, which makes as many as one likes."""
    wrong = fuzz.run(0, 700)
    assert not wrong, "\n".join(wrong)


# ------------------------------------------------------------------------------------------- determinism


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)  # also fills fresh memory with NaN
    yield
    torch.use_deterministic_algorithms(False)


LARGE = os.environ.get("SEGFUSE_LARGE", "") not in ("", "0")
RUNS = 20
SLOW = {"WeightedHausdorffLoss", "HausdorffCVLoss", "HausdorffERLoss", "BlobLoss"}
PIECES = {True: (23, 25), False: (121, 123)}  # enough for a second and a third thread


@pytest.mark.parametrize("variant", FIRST.values(), ids=str)
def test_same_bits_on_1_2_and_3_threads(variant, threads, deterministic):
    x, y = problem(variant.modes[-1], PIECES[variant.name in SLOW], torch.float32)
    loss = variant(mode=variant.modes[-1])
    torch.set_num_threads(1)
    first = evaluate(loss, x, y)
    for run in range(RUNS):
        torch.set_num_threads(1 + run % 3)
        assert all(same(a, b) for a, b in zip(evaluate(loss, x, y), first, strict=True))


X = torch.randn(2, 3, 121, 123, generator=torch.Generator().manual_seed(0))
Y = X.argmax(1)
OPS = {
    "pixel_stats": lambda: torch.stack(list(sf.pixel_stats(X, Y).values())),
    **{
        f"distance_transform_edt-{mode}": lambda mode=mode: (
            torch.stack(sf.distance_transform_edt(Y, mode=mode, return_indices=mode != "nearest_two"))
            if mode == "nearest_two"
            else sf.distance_transform_edt(Y, mode=mode, return_indices=True)[0]
        )
        for mode in fuzz.DISTANCE_MODES
    },
    "local_moments": lambda: torch.stack(sf.local_moments(X, X.flip(0))),
    "lovasz_extension": lambda: sf.lovasz_extension(X, Y),
    "top_k": lambda: fuzz.top_k.select(X.reshape(2, -1), None, 30.0).chosen,
}


@pytest.mark.parametrize("op", OPS)
def test_ops_give_the_same_bits(op, threads, deterministic):
    found = []
    for run in range(RUNS):
        torch.set_num_threads(1 + run % 3)
        found.append(OPS[op]())
    assert all(same(a, found[0]) for a in found)


# ------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("dtype", LABELS, ids=str)
@pytest.mark.parametrize(
    "loss",
    [sf.DiceLoss(), sf.CrossEntropyLoss(reduction="none"), sf.TopKCrossEntropyLoss(), sf.BoundaryLoss()]
    + [
        sf.HausdorffERLoss(),
        sf.LovaszLoss(),
        sf.SSIMLoss(window=3),
        sf.CMSSLLoss(window=3),
        sf.DiceLoss() + sf.TLoss(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_labels_out_of_range(loss, dtype):
    """In every dtype, also where 156 is -100 once it is cut to a byte."""
    x = torch.randn(1, 3, 6, 7)
    wrong = [v for v in (3, -1, 156, -128, 255, 2**15 - 1, 65436, 2**31, -(2**31), 2**62) if holds(dtype, v)]
    wrong = [v for v in wrong if dtype not in (torch.float16, torch.bfloat16) or abs(v) < 257]
    for v in wrong:
        y = torch.zeros(1, 6, 7).to(dtype)
        y[0, 2, 3] = v
        with pytest.raises(ValueError, match=r"got|class numbers|0 or 1"):
            loss(x, y)


def test_a_dtype_that_cannot_hold_the_ignored_label():
    x = torch.randn(1, 3, 6, 7)
    for dtype, ignore_index, label in (
        (torch.uint8, -100, 156),
        (torch.int8, 255, -1),
        (torch.float16, 2**40, torch.inf),
    ):
        y = torch.zeros(1, 6, 7).to(dtype)
        y[0, 2, 3] = label
        for kind in (sf.DiceLoss, sf.HausdorffERLoss, sf.BoundaryLoss, sf.TopKCrossEntropyLoss, sf.CMSSLLoss):
            with pytest.raises(ValueError, match="got"):
                kind(ignore_index=ignore_index)(x, y)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64], ids=str)
@pytest.mark.parametrize("kind", [sf.DiceLoss, sf.CrossEntropyLoss, sf.HausdorffERLoss, sf.CMSSLLoss])
def test_weights_that_pytorch_cannot_compare(backend, kind, dtype):
    x, y = problem("multiclass")
    weight = torch.arange(y.numel()).reshape(y.shape) % 3
    expected, found = (evaluate(kind(), x, y, weight_map=w) for w in (weight, weight.to(dtype)))
    assert same(found[0], expected[0]) and same(found[1], expected[1])
    if backend == "cuda":
        return  # values are looked at for debugging alone
    with pytest.raises(ValueError, match="target must hold"):
        kind()(x, y + 7, weight_map=weight.to(dtype))


def test_a_nan_among_the_weights_is_seen(backend):
    x, y = problem("multiclass")
    weight = torch.ones(y.shape)
    weight[:, 1, 2] = torch.nan
    assert sf.WeightedHausdorffLoss()(x, y, weight_map=weight).isnan()


# ------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("variant", FIRST.values(), ids=str)
def test_another_default_device(variant, reduction, backend):
    """Memory that kernels write to is on the device of the logits."""
    try:
        losses = [variant(mode=variant.modes[-1], reduction=reduction) for _ in range(2)]
    except ValueError:
        pytest.skip("it has one number only")
    x, y = problem(variant.modes[-1], dtype=torch.float32)
    expected = evaluate(losses[0], x, y)
    with torch.device("meta"):
        found = evaluate(losses[1], x, y)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_a_lazy_sign():
    """The memory of such a view holds the numbers with the other sign."""
    z = torch.complex(torch.randn(1, 3, 6, 7), torch.randn(1, 3, 6, 7)).conj().imag
    assert z.is_neg()
    y = torch.randint(0, 3, (1, 6, 7))
    for loss in (sf.DiceLoss(), sf.LovaszLoss(), sf.SSIMLoss(window=3)):
        assert same(loss(z, y), loss(z.resolve_neg(), y)) and same(loss(z, y, mask=y < 2), loss(z + 0, y, mask=y < 2))
    found, expected = (sf.distance_transform_edt(x, threshold=0.0) for x in (z, z.resolve_neg()))
    assert same(found, expected)
    assert all(same(a, b) for a, b in zip(sf.local_moments(z)[:2], sf.local_moments(z.resolve_neg())[:2], strict=True))


LEAK = """
def rss():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
torch.manual_seed(0)
torch.set_num_threads(2)
x, y = torch.randn(2, 1, 8, 8, requires_grad=True), (torch.rand(2, 1, 8, 8) < 0.4).long()
dice = sf.DiceLoss()
others = [sf.TopKCrossEntropyLoss(), sf.BoundaryLoss(), sf.HausdorffERLoss(), sf.HausdorffCVLoss(radii=(1, 2)),
    sf.WeightedHausdorffLoss(), sf.LovaszLoss(), sf.SSIMLoss(window=3), sf.CMSSLLoss(window=3), sf.CrossEntropyLoss(),
    sf.UNetWeightedCrossEntropyLoss(), sf.RegionLoss(lambda s: s.tp / (s.n + 1)), dice + sf.FocalLoss()]
def calls(n, losses):
    for _ in range(n):
        for loss in losses:
            torch.autograd.grad(loss(x, y), x)
            try:
                loss(x, y + 7)
            except ValueError:
                pass
            else:
                raise SystemExit("no error")
def more(n):
    for _ in range(n):
        sf.local_moments(x, window=3)
        sf.distance_transform_edt(y[:, 0], return_indices=True)
calls(300, [dice]); calls(40, others); more(100)
before = rss()
calls(10_000, [dice])
print(f"Dice {rss() - before:.2f}")
before = rss()
calls(60, others); more(300)
print(f"others {rss() - before:.2f}")
"""


@LINUX
def test_nothing_leaks():
    """10^4 calls of Dice and as many that raise, and 60 of each of everything else: less than 2 MiB more."""
    for line in python(LEAK).splitlines():
        assert float(line.split()[1]) < 2, line


OUT_OF_MEMORY = """
import resource
from all_losses import FIRST, problem
torch.set_num_threads(2)
def size():
    return int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")
x, y = problem("multiclass", (150, 150), torch.float32)
small = [t[..., :30, :30].contiguous() for t in (x, y)]
slow = ("WeightedHausdorffLoss", "HausdorffCVLoss", "HausdorffERLoss", "BlobLoss", "ShapeAwareLoss")
failed = works = 0
for name, variant in FIRST.items():
    if "multiclass" not in variant.modes:
        continue
    loss = variant(mode="multiclass")
    a, b = small if name in slow else (x, y)
    a = a.clone().requires_grad_()
    expected = torch.autograd.grad(loss(a, b), a)[0]  # also starts the threads
    for room in (0, 1, 4):
        gc.collect()
        resource.setrlimit(resource.RLIMIT_AS, (size() + room * 2**18, -1))
        try:
            found = torch.autograd.grad(loss(a, b), a)[0]
            works += 1
        except (RuntimeError, MemoryError) as error:
            failed += 1
            found = expected
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        assert torch.equal(found, expected), name
    assert torch.equal(torch.autograd.grad(loss(a, b), a)[0], expected), name
print(failed, works)
"""


@LINUX
def test_out_of_memory_raises_and_the_next_call_works():
    """Wherever it is met: in PyTorch's allocations or in the kernels' own, on any thread."""
    environment = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        failed, works = map(int, python(OUT_OF_MEMORY).split())
    assert failed > 20 and works > 20


@pytest.mark.parametrize("kind", [sf.DiceLoss, sf.TopKCrossEntropyLoss, sf.LovaszLoss, sf.HausdorffERLoss])
def test_an_allocation_that_fails(kind, monkeypatch):
    x, y = problem("multiclass", dtype=torch.float32)
    loss = kind()
    expected = evaluate(loss, x, y)

    def empty(*shape: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        for name in ("empty", "empty_like", "zeros"):
            patch.setattr(torch, name, empty)
        patch.setattr(torch.Tensor, "new_empty", empty)
        with pytest.raises(torch.OutOfMemoryError):
            evaluate(loss, x, y)
    assert all(same(a, b) for a, b in zip(evaluate(loss, x, y), expected, strict=True))


# ------------------------------------------------------------------------------------------- threads, interrupts


INTERRUPT = """
x = torch.rand(160, 160, 160) < 0.999
small = sf.distance_transform_edt(x[None, 0, :9, :9])
torch.set_num_threads(1)
begin = time.monotonic()
sf.distance_transform_edt(x[None])
whole = time.monotonic() - begin
threading.Timer(whole / 4, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    sf.distance_transform_edt(x[None], mode="two_sided")
    time.sleep(5)
    raise SystemExit("not interrupted")
except KeyboardInterrupt:
    pass
assert torch.equal(sf.distance_transform_edt(x[None, 0, :9, :9]), small)
print("fine")
"""


@LINUX
def test_an_interrupt_in_a_long_transform():
    """It is raised when the kernel returns, and everything works afterwards."""
    assert python(INTERRUPT).strip() == "fine"


def test_tensors_that_are_deleted_while_a_kernel_runs():
    """The call holds them."""
    shape = (1, 90, 90, 90)
    expected = sf.distance_transform_edt(torch.arange(90**3).reshape(shape) % 97 > 0)
    held = [torch.arange(90**3).reshape(shape) % 97 > 0]
    found: list[torch.Tensor] = []
    worker = threading.Thread(target=lambda: found.append(sf.distance_transform_edt(held.pop())))
    worker.start()
    while worker.is_alive():  # whoever gets the memory next fills it
        held.clear()
        gc.collect()
        torch.full(shape, 7, dtype=torch.uint8)
    worker.join()
    assert same(found[0], expected)


# ------------------------------------------------------------------------------------------- large


def available_gib() -> float:
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    except OSError:
        return 0


@pytest.mark.slow
@pytest.mark.skipif(not LARGE or available_gib() < 14, reason="needs SEGFUSE_LARGE=1, 14 GiB and some minutes")
class TestMoreThan31Bits:
    """2^31 pixels and more. Logits are one row, expanded; masks of bytes are really there."""

    H, W = 2**16 + 3, 2**15 + 1

    def rows(self, C: int = 1) -> torch.Tensor:
        row = torch.randn(1, C, 1, self.W, generator=torch.Generator().manual_seed(0))
        return row.expand(1, C, self.H, self.W)

    def test_sums(self):
        x, y = self.rows(), torch.zeros(1, 1, self.H, self.W, dtype=torch.uint8)
        assert y.numel() > 2**31
        y[..., -2:, :] = 1
        found = sf.pixel_stats(x, y, ("count", "true", "tp", "pred"))
        row = torch.sigmoid(x[0, 0, 0].double()).sum()
        assert found["count"].item() == y.numel() and found["true"].item() == 2 * self.W
        torch.testing.assert_close(found["tp"][0, 0], 2 * row, rtol=1e-6, atol=0)
        torch.testing.assert_close(found["pred"][0, 0], self.H * row, rtol=1e-6, atol=0)

    def test_a_label_out_of_range_beyond(self):
        y = torch.zeros(1, self.H, self.W, dtype=torch.uint8)
        y[0, -1, -1] = 9
        with pytest.raises(ValueError, match="got 9"):
            sf.DiceLoss()(self.rows(2), y)

    def test_gradient(self):
        x = torch.zeros(1, 1, self.H, self.W, dtype=torch.float16).requires_grad_()
        y = torch.zeros(1, 1, dtype=torch.uint8).expand(1, 1, self.H, self.W)
        sf.CrossEntropyLoss(reduction="sum")(x, y).backward()
        assert x.grad is not None
        assert x.grad[0, 0, -1].eq(0.5).all() and x.grad[0, 0, 0].eq(0.5).all()

    def test_transform(self):
        y = torch.ones(540, 2000, 2000, dtype=torch.uint8)
        assert y.numel() > 2**31
        y[-1, -1, -1] = 0
        d = sf.distance_transform_edt(y)
        assert d[-1, -1, -1] == 0 and d[-1, -1, -4] == 3 and d[-1, -5, -4] == 5
        assert abs(d[-1, 0, 0].item() / (1999 * 2**0.5) - 1) < 1e-6
        assert not d[:-1].any()

    def test_windows(self):
        x = self.rows()
        y = torch.zeros(1, 1, 1, self.W, dtype=torch.uint8).expand(x.shape)
        some = sf.SSIMLoss(window=3, kernel="box")(x[..., :300, :], y[..., :300, :])
        torch.testing.assert_close(sf.SSIMLoss(window=3, kernel="box")(x, y), some, rtol=1e-3, atol=0)
