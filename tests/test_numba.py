"""The Numba backend beside its numbers: threads, the log, and the kernels that are kept on disk."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading

import pytest
import torch

import segfuse as sf
from all_losses import problem
from compare import evaluate, same

if "numba" not in sf.backends.available("pixel_stats"):
    pytest.skip("numba is not installed", allow_module_level=True)

from segfuse.backends.numba import _half, _run

X, Y = problem("multiclass", dtype=torch.float32)


@pytest.fixture(params=["openmp", "python"])
def workers(request, threads, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(_run, "_forked", True)
    elif _run._openmp() is None:
        pytest.skip("torch has no OpenMP runtime of GNU")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_threads_as_torch(workers, count):
    torch.set_num_threads(count)
    seen: list[tuple[int, int]] = []
    together = threading.Barrier(count, timeout=60)  # all of them at once

    def work(first: int, last: int) -> None:
        together.wait()
        seen.append((first, last))

    _run.run(work, 8)
    assert len(seen) == count
    assert sorted(i for first, last in seen for i in range(first, last)) == list(range(8))


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
def test_an_error_in_any_thread_comes_back(workers, where, error):
    torch.set_num_threads(2)
    done: list[int] = []

    def work(first: int, last: int) -> None:
        if first == where:
            raise error("of a thread")
        done.append(first)

    with pytest.raises(error, match="of a thread"):
        _run.run(work, 2)
    assert done == [1 - where]


def test_several_threads_at_once(workers):
    """Each with a team of its own."""
    torch.set_num_threads(2)
    with sf.use_backend("numba"):
        expected = evaluate(sf.DiceCELoss(), X, Y)
    found: list[bool] = []

    def call() -> None:
        with sf.use_backend("numba"):
            found.extend(all(map(same, evaluate(sf.DiceCELoss(), X, Y), expected)) for _ in range(20))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert found == [True] * 80


def test_says_once_that_it_compiles(caplog):
    _run._announce.cache_clear()
    with sf.use_backend("numba"), caplog.at_level(logging.INFO, logger="segfuse"):
        for _ in range(3):
            sf.DiceLoss()(X, Y)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "compiled at its first call" in caplog.text


def test_another_process_finds_the_compiled_kernel():
    with sf.use_backend("numba"):
        sf.DiceLoss()(X, Y)
    code = """
import torch, segfuse
segfuse.DiceLoss()(torch.ones(1, 2, 8), torch.ones(1, 8, dtype=torch.long))
from segfuse.backends.numba._hard_targets import softmax_pass
print(sum(softmax_pass.stats.cache_hits.values()), sum(softmax_pass.stats.cache_misses.values()))
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SEGFUSE_BACKEND": "numba"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout.split() == ["1", "0"], run.stderr


def test_a_linear_loss_is_one_pass(monkeypatch):
    """The gradient is written by the pass that adds up, and made again when it was handed out before."""
    from segfuse.backends.numba import pixel_stats

    calls: list[int] = []
    run = pixel_stats._Job.run
    monkeypatch.setattr(pixel_stats._Job, "run", lambda job: (calls.append(1), run(job))[1])
    x = X.clone().requires_grad_()
    y = Y.to(torch.uint8)  # which cannot be -100: no pixel needs to be counted
    with sf.use_backend("numba"):
        value = sf.CrossEntropyLoss()(x, y)
        (first,) = torch.autograd.grad(2 * value, x, retain_graph=True)
        assert len(calls) == 1
        first = first.clone()
        (again,) = torch.autograd.grad(2 * value, x)
        assert len(calls) == 2
    assert same(first, again)
    with sf.use_backend("reference"):
        _, expected = evaluate(lambda a, b: 2 * sf.CrossEntropyLoss()(a, b), X, y)
    assert torch.allclose(first, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_read_and_rounded_as_torch_does(dtype):
    every = torch.arange(1 << 16).to(torch.uint16).view(dtype)
    found = torch.empty(every.shape)
    _half.widen(_run.view(every), found.numpy())
    assert same(found, every.float())
    random = torch.Generator().manual_seed(0)
    x = torch.randn(10_001, generator=random) * 10.0 ** torch.randint(-44, 38, (10_001,), generator=random)
    halfway = torch.tensor([1.00390625, 1.01171875, -1.00390625, torch.inf, -torch.inf, torch.nan, 3.4e38, 0.0, -0.0])
    x = torch.cat([x, halfway, found[found.isfinite()] * (1 + 2**-11)])
    rounded = torch.empty(x.shape, dtype=dtype)
    _half.narrow(x.numpy(), _run.view(rounded))
    assert same(rounded, x.to(dtype))
