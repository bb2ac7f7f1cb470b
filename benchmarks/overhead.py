"""What a call of a loss costs beyond its kernels, in microseconds, beside what torch itself takes for an empty one.

    python benchmarks/overhead.py

One thread, small tensors, the least of many repeats. ``kernel`` is the native call alone; ``empty`` is an
``autograd.Function`` that only allocates its results, called as a module.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import torch
from torch import Tensor, nn

import segfuse
from segfuse import doctor
from segfuse.backends.cpp import formula as backend

SHAPE = (2, 1, 16, 16)


def least(calls: dict[str, Callable[[], object]], number: int = 200, repeats: int = 150) -> dict[str, float]:
    """Of each call, taken in turn, so that a slow minute of the machine is slow for all."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(number):
                call()
            best[name] = min(best[name], 1e6 * (time.perf_counter() - start) / number)
    return best


class _Empty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(input, target)
        return torch.empty(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        input, _ = ctx.saved_tensors
        return torch.empty_like(input), None


class Empty(nn.Module):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _Empty.apply(input, target)


class Recorder:
    """Stands for the extension and keeps what its functions were called with."""

    def __init__(self, native: Any) -> None:
        self.native, self.calls = native, {}

    def __getattr__(self, name: str) -> Any:
        def call(**arguments: Any) -> Any:
            self.calls[name] = arguments
            return getattr(self.native, name)(**arguments)

        return call if name.startswith("formula_") else getattr(self.native, name)


def kernels(loss: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    native, backend._cpp = backend._cpp, Recorder(backend._cpp)
    try:
        value = loss(x, y)
        torch.autograd.grad(value, x, retain_graph=True)  # the graph keeps what forward wrote
        calls = backend._cpp.calls
    finally:
        backend._cpp = native
    one, grad = torch.ones((), dtype=value.dtype), torch.empty_like(x)
    forward = calls["formula_forward"]
    if forward["grad_input"]:
        forward["grad_input"] = grad.data_ptr()
    again = {**calls["formula_backward"], "grad": one.data_ptr(), "grad_input": grad.data_ptr()}
    held = value, one, grad  # the kernels write there
    return {
        "kernel forward": lambda held=held: native.formula_forward(**forward),
        "kernel backward": lambda held=held: native.formula_backward(**again),
    }


def main() -> None:
    torch.set_num_threads(1)
    x, y = torch.randn(SHAPE, requires_grad=True), torch.randint(0, 2, SHAPE)
    commit = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True).stdout.strip()
    cpu = f"{doctor.collect()['cpu']['model']}, 1 thread; torch {torch.__version__}"
    print(f"{cpu}; segfuse at commit {commit}, {date.today()}; logits {SHAPE}; microseconds")
    print(f"{'':28}{'forward':>10}{'kernel':>10}{'beyond':>10}{'backward':>12}{'kernel':>10}{'beyond':>10}")
    losses = (Empty(), segfuse.DiceLoss(), segfuse.CrossEntropyLoss(), segfuse.DiceCELoss())
    calls: dict[str, Callable[[], object]] = {}
    for loss in losses:
        name = type(loss).__name__
        calls[f"{name} forward"] = lambda loss=loss: loss(x, y)
        calls[f"{name} both"] = lambda loss=loss: torch.autograd.grad(loss(x, y), x)
        inside = {} if isinstance(loss, Empty) else kernels(loss, x, y)
        calls.update({f"{name} {part}": call for part, call in inside.items()})
    took = least(calls)
    for loss in losses:
        name = type(loss).__name__
        row = []
        for whole, part in (
            (took[f"{name} forward"], "forward"),
            (took[f"{name} both"] - took[f"{name} forward"], "backward"),
        ):
            kernel = took.get(f"{name} kernel {part}", 0.0)
            row += [whole, kernel, whole - kernel]
        print(f"{name:28}" + "".join(f"{t:{w}.1f}" for t, w in zip(row, (10, 10, 10, 12, 10, 10))))


if __name__ == "__main__":
    main()
