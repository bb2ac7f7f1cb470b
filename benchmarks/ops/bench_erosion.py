"""Erosion, forward with its gradient, against kornia's loss of the same value where kornia is installed."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from peers import part

SHAPES = [(4, 1, 256, 256), (1, 1, 96, 96, 96)]


def balls(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logits and labels of a ball and its displaced, noisy prediction: errors that survive all erosions."""
    random = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(s)) for s in shape[2:]], indexing="ij"), -1)
    middle = torch.tensor(shape[2:]) / 2
    inside = (grid - middle).norm(dim=-1) < 0.3 * shape[-1]
    moved = 0.3 * shape[-1] - (grid - middle - 0.15 * shape[-1]).norm(dim=-1)
    logits = moved.clamp(-4, 4).expand(shape) + torch.randn(shape, generator=random)
    return logits, inside.expand(shape).long()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_erosion(benchmark: Any, report: dict[Any, Any], shape: tuple[int, ...]) -> None:
    sf = pytest.importorskip("segfuse")
    logits, labels = balls(shape)
    logits.requires_grad_()
    loss = sf.HausdorffERLoss()

    def run() -> Tensor:
        (grad,) = torch.autograd.grad(loss(logits, labels), logits)
        return grad

    benchmark.pedantic(run, rounds=10, warmup_rounds=2)
    ours = benchmark.stats.stats.min
    line = f"erosion {shape} {ours * 1e3:8.2f} ms"
    try:
        losses = part("kornia", "losses")
    except ImportError:
        losses = None
    if losses is not None:  # its labels are below the number of channels, so one channel needs its inner function
        peer = (losses.HausdorffERLoss if len(shape) == 4 else losses.HausdorffERLoss3D)()

        def theirs() -> Tensor:
            value = peer.perform_erosion(torch.sigmoid(logits), labels.float()).mean()
            (grad,) = torch.autograd.grad(value, logits)
            return grad

        torch.testing.assert_close(run(), theirs(), rtol=0, atol=1e-4 * float(theirs().abs().max()))
        took = []
        for _ in range(3):
            start = time.perf_counter()
            theirs()
            took.append(time.perf_counter() - start)
        line += f"  kornia {min(took) * 1e3:8.2f} ms  {min(took) / ours:6.1f} x"
    report["erosion", shape] = line
