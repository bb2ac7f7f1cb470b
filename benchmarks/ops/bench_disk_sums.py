"""Ball sums, forward with their gradient, against convolutions with every ball."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from bench_erosion import balls


@pytest.mark.parametrize("shape", [(4, 1, 256, 256), (1, 1, 96, 96, 96)], ids=str)
def test_disk_sums(benchmark: Any, report: dict[Any, Any], shape: tuple[int, ...]) -> None:
    sf = pytest.importorskip("segfuse")
    logits, labels = balls(shape)
    logits.requires_grad_()
    loss = sf.HausdorffCVLoss()

    def run() -> None:
        torch.autograd.grad(loss(logits, labels), logits)

    benchmark.pedantic(run, rounds=10, warmup_rounds=2)
    ours = benchmark.stats.stats.min
    line = f"disk_sums {shape} {ours * 1e3:8.2f} ms"
    if len(shape) == 4:
        with sf.use_backend("reference"):
            start = time.perf_counter()
            run()
            took = time.perf_counter() - start
        line += f"  convolutions {took * 1e3:8.2f} ms  {took / ours:6.1f} x"
    report["disk_sums", shape] = line
