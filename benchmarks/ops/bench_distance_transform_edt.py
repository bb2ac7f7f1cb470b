"""Exact distances against the PyPI package edt, SciPy and OpenCV where they are installed, and against memory.

Peers take one mask at a time, so a batch is a loop over them; they and segfuse use two threads where they can. Values
are compared before anything is timed. The floor is the bytes that must move: the mask read once and the output written
once; a volume's is read and written once more, because only the first two axes share a pass over a plane in cache.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import segfuse
from bandwidth import Bandwidth

THREADS = 2
SHAPES = {"128^3": (1, 128, 128, 128), "256^3": (1, 256, 256, 256), "16 x 512^2": (16, 512, 512)}
MASKS = {"blob": (4.0, 0.5), "large blobs": (20.0, 0.6), "sparse": None}  # smoothing in pixels, share of background
MODES: dict[str, dict[str, Any]] = {
    "inside": {},
    "anisotropic": {"spacing": (1.5, 0.8, 0.7)},
    "two_sided": {"mode": "two_sided"},
}
SLOW = 256**3  # pixels from which SciPy is left out: it takes ten seconds

Peer = Callable[[np.ndarray], np.ndarray]


def mask(name: str, shape: tuple[int, ...]) -> Tensor:
    random = torch.Generator().manual_seed(1)
    if MASKS[name] is None:
        return (torch.rand(shape, generator=random) >= 1e-4).to(torch.uint8)
    ndimage = pytest.importorskip("scipy.ndimage")
    sigma, background = MASKS[name]
    noise = torch.randn(shape, generator=random).numpy()
    smooth = np.stack([ndimage.gaussian_filter(sample, sigma) for sample in noise])
    return torch.from_numpy(smooth > np.quantile(smooth[0], background)).to(torch.uint8)


def peers(spacing: tuple[float, ...] | None, axes: int, pixels: int) -> dict[str, Peer]:
    """Distances of one mask by every package at hand."""

    def found(name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError:
            return None

    edt, ndimage, cv2 = found("edt"), found("scipy.ndimage"), found("cv2")
    all_peers: dict[str, Peer] = {}
    if edt is not None:
        all_peers["edt"] = lambda m: edt.edt(m, anisotropy=spacing or (1.0,) * axes, parallel=THREADS)
    if ndimage is not None and pixels < SLOW:
        all_peers["scipy"] = lambda m: ndimage.distance_transform_edt(m, sampling=spacing)
    if cv2 is not None and axes == 2 and spacing is None:
        cv2.setNumThreads(THREADS)
        all_peers["opencv"] = lambda m: cv2.distanceTransform(m, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return all_peers


def seconds(run: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("size", SHAPES)
def test_distances(
    benchmark: Any, bandwidth: Bandwidth, report: dict[Any, Any], size: str, name: str, mode: str
) -> None:
    shape = SHAPES[size]
    x = mask(name, shape)
    options = dict(MODES[mode])
    if "spacing" in options:
        options["spacing"] = options["spacing"][: len(shape) - 1]
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        ours = segfuse.distance_transform_edt(x, **options)
        samples, inverse = list(x.numpy()), list((1 - x).numpy())
        timed: dict[str, float] = {}
        for peer, run in peers(options.get("spacing"), len(shape) - 1, x.numel()).items():
            theirs = run(samples[0])
            if mode == "two_sided":
                theirs = theirs + run(inverse[0])
            np.testing.assert_allclose(ours[0].numpy(), theirs, rtol=1e-5)
            work = samples + inverse if mode == "two_sided" else samples
            timed[peer] = seconds(lambda run=run, work=work: [run(m) for m in work], 3 if peer != "scipy" else 1)
        benchmark.group = f"distance_transform_edt {size} {name}"
        benchmark.pedantic(lambda: segfuse.distance_transform_edt(x, **options), rounds=8, warmup_rounds=1)
    finally:
        torch.set_num_threads(before)
    floor = x.nbytes / bandwidth.read + ours.nbytes / bandwidth.write
    floor += (len(shape) - 3) * 2 * ours.nbytes / bandwidth.copy
    best = benchmark.stats.stats.min
    benchmark.extra_info.update(floor_ms=floor * 1e3, **{f"{peer}_ms": t * 1e3 for peer, t in timed.items()})
    ratios = "  ".join(f"{peer} {t / best:5.1f} x" for peer, t in timed.items())
    report[size, name, mode] = (
        f"{size:10} {name:11} {mode:11} {best * 1e3:8.2f} ms  {best / x.numel() * 1e9:5.2f} ns/pixel  "
        f"{best / floor:5.1f} x floor  {ratios}"
    )
