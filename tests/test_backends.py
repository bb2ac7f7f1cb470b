"""Which implementation runs: the best, or the one that was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import segfuse as sf
from all_losses import problem
from compare import close

X, Y = problem("multiclass", dtype=torch.float32)
NATIVE = [name for name in sf.backends.available("pixel_stats") if name in ("cpp", "numba")]
BEST = next(name for name in sf.backends.available("pixel_stats") if name != "cuda")  # on the CPU


def test_reference_is_always_there():
    for op in sf.backends.OPS:
        assert "reference" in sf.backends.available(op)
        reasons = sf.backends.why_not(op)
        assert all((reasons[name] is None) == (name in sf.backends.available(op)) for name in sf.backends.NAMES)


def test_unknown_backend():
    with pytest.raises(ValueError, match="got 'fast'") as error, sf.use_backend("fast"):
        pass
    assert "cpp" in str(error.value) and "reference" in str(error.value)


@pytest.mark.parametrize("name", [n for n, reason in sf.backends.why_not("pixel_stats").items() if reason])
def test_a_forced_backend_runs_or_raises(name):
    with sf.use_backend(name), pytest.raises(RuntimeError, match=name) as error:
        sf.DiceLoss()(X, Y)
    assert sf.backends.why_not("pixel_stats")[name] in str(error.value)


def test_use_backend_is_undone():
    with sf.use_backend("reference"):
        assert "on reference" in sf.explain(sf.DiceLoss(), X, Y)
        with sf.use_backend(BEST):
            assert f"on {BEST}" in sf.explain(sf.DiceLoss(), X, Y)
        assert "on reference" in sf.explain(sf.DiceLoss(), X, Y)
    with pytest.raises(KeyError), sf.use_backend("reference"):
        raise KeyError
    assert f"on {BEST}" in sf.explain(sf.DiceLoss(), X, Y)


def test_one_loss_object_on_one_backend_after_another():
    loss = sf.DiceLoss() + sf.CrossEntropyLoss()
    first = loss(X, Y)
    with sf.use_backend("reference"):
        close(loss(X, Y), first.double(), 1e-6)
        assert "on reference" in sf.explain(loss, X, Y)
    assert torch.equal(loss(X, Y), first)


def test_use_backend_holds_for_its_thread_alone():
    seen = []
    with sf.use_backend("reference"):
        worker = threading.Thread(target=lambda: seen.append(sf.explain(sf.DiceLoss(), X, Y)))
        worker.start()
        worker.join()
    assert f"on {BEST}" in seen[0]


@pytest.mark.parametrize("backend", NATIVE)
def test_one_loss_object_in_many_threads(backend):
    """Kernels run without the interpreter's lock; every thread gets its own numbers."""
    loss = 0.5 * sf.FocalLoss() + sf.DiceLoss()
    inputs = [problem("multiclass", (64, 65), torch.float32, seed=seed) for seed in range(4)]
    wrong = []
    with sf.use_backend(backend):
        expected = [loss(x, y) for x, y in inputs]

    def work(number: int) -> None:
        x, y = inputs[number]
        with sf.use_backend(backend):
            for _ in range(20):
                if not torch.equal(loss(x, y), expected[number]):
                    wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


SCRIPT = """
import torch, segfuse
x, y = torch.randn(1, 2, 200, 200, requires_grad=True), torch.zeros(1, 200, 200, dtype=torch.long)
loss = segfuse.DiceLoss()
"""


def python(code: str, **variables: str) -> str:
    """What the code prints, in a process of its own."""
    command = [sys.executable, "-c", SCRIPT + code]
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300
    )  # Numba may have to compile
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_environment_variable():
    code = """
print(segfuse.explain(loss, x, y))
with segfuse.use_backend("cpp"):
    print(segfuse.explain(loss, x, y))
"""
    text = python(code, SEGFUSE_BACKEND="reference")
    assert "on reference" in text
    assert BEST != "cpp" or "on cpp" in text  # the context manager is stronger


def test_environment_variables_that_name_nothing():
    code = """
try:
    loss(x, y)
except RuntimeError as error:
    print(error)
"""
    assert "SEGFUSE_BACKEND must be one of cuda, cpp, numba, reference" in python(code, SEGFUSE_BACKEND="cpu")
    if BEST == "cpp":
        done = subprocess.run(
            [sys.executable, "-c", "import segfuse"],
            env={**os.environ, "SEGFUSE_ISA": "avx9"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0 and "SEGFUSE_ISA must be one of" in done.stderr and "'avx9'" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("first", ["parent", "child"])
def test_a_forked_child_does_not_hang(backend, first):
    """The threads of the parent are gone in the child: C++ kernels run serially there, Numba's on new ones, with the
    same bits."""
    code = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
torch.set_num_threads(3)
torch.randn(1000, 1000).exp().sum()  # threads of OpenMP
def call():
    x.grad = None
    value = loss(x, y)
    value.backward()
    return value.item(), x.grad.numpy()
before = call() if first == "parent" else None
child = os.fork()
if child == 0:  # torch's own operations on large tensors would hang here: numpy compares
    value, grad = call()
    os._exit(0 if before is None or value == before[0] and (grad == before[1]).all() else 1)
print("child", os.waitpid(child, 0)[1])
"""
    assert python(f"first = {first!r}" + code, SEGFUSE_BACKEND=backend).strip() == "child 0"
