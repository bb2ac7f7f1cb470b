"""The ops on windows alone, forward and backward, against a read of the images and a write of the results."""

from __future__ import annotations

from typing import Any

import pytest

from bandwidth import Bandwidth
from candidates import inputs

IMAGE, VOLUME = (4, 1, 512, 512), (2, 1, 128, 128, 128)
CASES: dict[str, tuple[tuple[int, ...], int]] = {
    "image-3": (IMAGE, 3),
    "image-11": (IMAGE, 11),
    "image-33": (IMAGE, 33),
    "volume-3": (VOLUME, 3),
    "volume-11": (VOLUME, 11),
}


@pytest.mark.parametrize("op", ["local_moments", "ssim", "cmssl"])
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("case", CASES)
def test_sweep(
    benchmark: Any, bandwidth: Bandwidth, report: dict[Any, Any], case: str, direction: str, op: str
) -> None:
    sf = pytest.importorskip("segfuse")
    shape, window = CASES[case]
    logits, labels = inputs(shape)
    both = direction == "both"
    logits = logits.detach().requires_grad_(both)
    second = labels.float()
    if op == "local_moments":
        call = lambda: sf.local_moments(logits, second, window=window).cov.sum()  # noqa: E731
    else:
        loss = sf.SSIMLoss(window=window) if op == "ssim" else sf.CMSSLLoss(window=window)
        call = lambda: loss(logits, labels)  # noqa: E731

    def run() -> None:
        value = call()
        if both:
            value.backward()

    def clear() -> None:
        logits.grad = None

    moved = logits.nbytes + (5 * logits.nbytes + second.nbytes if op == "local_moments" else labels.nbytes)
    floor = moved / bandwidth.read + (2 * logits.nbytes / bandwidth.copy if both else 0)
    benchmark.group = f"{op} {direction}"
    benchmark.pedantic(run, setup=clear, rounds=10, warmup_rounds=1)
    best = benchmark.stats.stats.min
    report[op, case, direction] = (
        f"{op:14} {direction:8} {case:12} {best * 1e3:8.3f} ms  floor {floor * 1e3:8.3f} ms  "
        f"{best / floor:6.2f} x floor"
    )
