"""The op alone: forward with its sorts, for a gradient or the value alone, and backward, in nanoseconds an error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from candidates import inputs

BINARY, MULTICLASS = (16, 1, 512, 512), (8, 19, 512, 512)
CASES: dict[str, tuple[tuple[int, ...], torch.dtype, bool]] = {
    "binary-image": (BINARY, torch.float32, True),
    "binary-batch": (BINARY, torch.float32, False),
    "binary-image-half": (BINARY, torch.float16, True),
    "multiclass-image": (MULTICLASS, torch.float32, True),
    "multiclass-batch": (MULTICLASS, torch.float32, False),
}


@pytest.mark.parametrize("direction", ["forward", "value", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_pass(benchmark: Any, report: dict[Any, Any], case: str, direction: str) -> None:
    op = pytest.importorskip("segfuse.ops.lovasz_extension")
    shape, dtype, per_image = CASES[case]
    logits, labels = inputs(shape)
    tensors, geometry = op.check(logits.detach().to(dtype), labels)
    how = op.problems(geometry, per_image, "present")
    backend = op.backend(tensors, geometry)
    if direction != "backward":
        how = replace(how, keep_slopes=direction == "forward")
        run = lambda: backend.forward(tensors, geometry, how)  # noqa: E731
    else:
        slope = backend.forward(tensors, geometry, how)[2]
        coefficient = torch.ones(how.count(geometry), dtype=torch.float64)
        run = lambda: backend.backward(tensors, geometry, how, slope, coefficient)  # noqa: E731
    benchmark.group = f"lovasz_extension {direction}"
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    best = benchmark.stats.stats.min
    report[case, direction] = (
        f"{direction:8} {case:30} {best * 1e3:8.2f} ms  {best / logits.numel() * 1e9:6.2f} ns an error"
    )
