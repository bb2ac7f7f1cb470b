"""The op alone: one forward and one backward pass over memory, each against the bytes it must move."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bandwidth import Bandwidth
from candidates import inputs

BINARY, MULTICLASS = (16, 1, 512, 512), (8, 19, 512, 512)
DICE = ("tp", "pred", "true")
FOCAL = ((("focal", 2.0), 0), (("focal", 2.0), 1))
EVERYTHING = (*DICE, "pred2", "n", *FOCAL, (("focal", 0.0), 0), (("focal", 0.0), 1))

CASES: dict[str, tuple[tuple[int, ...], torch.dtype, str, tuple[Any, ...]]] = {
    "binary-dice": (BINARY, torch.float32, "contiguous", DICE),
    "binary-focal": (BINARY, torch.float32, "contiguous", FOCAL),
    "binary-everything": (BINARY, torch.float32, "contiguous", EVERYTHING),
    "binary-dice-half": (BINARY, torch.float16, "contiguous", DICE),
    "binary-dice-bfloat16": (BINARY, torch.bfloat16, "contiguous", DICE),
    "binary-dice-double": (BINARY, torch.float64, "contiguous", DICE),
    "binary-dice-strided": (BINARY, torch.float32, "transposed", DICE),
    "multiclass-dice": (MULTICLASS, torch.float32, "contiguous", DICE),
    "multiclass-focal": (MULTICLASS, torch.float32, "contiguous", FOCAL),
    "multiclass-everything": (MULTICLASS, torch.float32, "contiguous", EVERYTHING),
    "multiclass-dice-bfloat16": (MULTICLASS, torch.bfloat16, "contiguous", DICE),
    "multiclass-dice-channels_last": (MULTICLASS, torch.float32, "channels_last", DICE),
}


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_pass(benchmark: Any, bandwidth: Bandwidth, report: dict[Any, Any], case: str, direction: str) -> None:
    op = pytest.importorskip("segfuse.ops.pixel_stats")
    shape, dtype, layout, wanted = CASES[case]
    logits, labels = inputs(shape)
    logits = logits.detach().to(dtype)
    if layout == "channels_last":
        logits = logits.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        logits = logits.mT.contiguous().mT

    rows = [row if isinstance(row, str) else (op.Term(*row[0]), row[1]) for row in wanted]
    tensors, geometry = op.check(logits, labels)
    plan = op.Plan(rows)
    coefficient = torch.full((plan.rows, *shape[:2]), 1e-6, dtype=torch.float64)

    if direction == "forward":
        floor = (logits.nbytes + labels.nbytes) / bandwidth.read
        run = lambda: op.forward(tensors, geometry, plan)  # noqa: E731
    else:
        floor = 2 * logits.nbytes / bandwidth.copy + labels.nbytes / bandwidth.read
        run = lambda: op.backward(tensors, geometry, plan, coefficient)  # noqa: E731
    benchmark.group = f"pixel_stats {direction}"
    benchmark.pedantic(run, rounds=20, warmup_rounds=2)
    benchmark.extra_info["floor_ms"] = floor * 1e3
    best = benchmark.stats.stats.min
    report[case, direction] = (
        f"{direction:8} {case:30} {best * 1e3:8.3f} ms  floor {floor * 1e3:8.3f} ms  {best / floor:6.2f} x floor"
    )
