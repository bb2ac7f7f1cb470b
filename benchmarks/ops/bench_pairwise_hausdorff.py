"""The weighted Hausdorff distance, forward with its gradient, per pair of a pixel and a point."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from bench_erosion import balls


@pytest.mark.parametrize("alpha", [-1.0, -9.0])
@pytest.mark.parametrize("points", [20, 500])
def test_pairwise_hausdorff(benchmark: Any, report: dict[Any, Any], points: int, alpha: float) -> None:
    sf = pytest.importorskip("segfuse")
    logits, _ = balls((4, 1, 256, 256))
    logits.requires_grad_()
    random = torch.Generator().manual_seed(0)
    coordinates = [256 * torch.rand(points, 2, generator=random) for _ in range(4)]
    loss = sf.WeightedHausdorffLoss(alpha=alpha)

    def run() -> None:
        torch.autograd.grad(loss(logits, coordinates), logits)

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    ours = benchmark.stats.stats.min
    with sf.use_backend("reference"):
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
    pairs = logits.numel() * points
    report["pairwise_hausdorff", points, alpha] = (
        f"pairwise_hausdorff {points} points, alpha {alpha:g}: {ours * 1e3:8.2f} ms, "
        f"{ours / pairs * 1e9:.2f} ns a pair  plain torch {took * 1e3:8.2f} ms  {took / ours:6.1f} x"
    )
