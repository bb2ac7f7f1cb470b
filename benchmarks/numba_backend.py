"""The Numba backend against the C++ one and plain torch: forward and backward, two threads, the median of many calls.

    python benchmarks/numba_backend.py                       every op (some ten minutes; 4 GB)
    python benchmarks/numba_backend.py erosion disk_sums     some
    python benchmarks/numba_backend.py --rows Dice           rows whose name or shape has that in it
    python benchmarks/numba_backend.py --compile [op ...]    the first call of a process: kernels compiled, or on disk

Plain torch is the code that `peers.py` has for the loss, in float32 for logits of half precision (sums of float16
overflow), else the reference backend (marked *). It is left out where a call takes seconds. Distances have no backward
pass. Gradients and distances are checked equal before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from os import environ
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import segfuse
from candidates import Timed, inputs, interleave, steady_heap
from measure import environment
from peers import LOSSES

sys.path.insert(0, str(Path(__file__).parent / "ops"))
from bench_distance_transform_edt import MASKS, MODES, mask
from bench_distance_transform_edt import SHAPES as DISTANCES
from bench_erosion import SHAPES as ERODED
from bench_erosion import balls
from bench_local_moments import CASES as WINDOWS

THREADS = 2
CLOSE, ROUGH = 1e-3, 0.1  # mean differences: of ours, and of plain torch, whose sorted steps lose their digits
LONG = ("window 11", "HausdorffCVLoss")  # in a volume
SLOW = 2.0  # seconds of a call from which plain torch is left out
BINARY, IMAGES, VOLUMES = (16, 1, 512, 512), (8, 19, 512, 512), (2, 14, 96, 96, 96)
Shape = tuple[int, ...]
Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    name: str
    shape: Shape
    build: Callable[[Shape], Call]  # a call, on tensors made once
    plain: Callable[[Shape], Call] | None = None  # the same in plain torch; None: the reference backend


@dataclass(frozen=True)
class Gradient:
    """Forward and backward of a loss at a shape; inputs are those of `candidates.inputs` unless they must be others."""

    loss: Callable[[Tensor, Any], Tensor]
    dtype: torch.dtype = torch.float32
    widened: bool = False  # by the call
    data: Callable[[Shape], tuple[Tensor, Any]] = field(default=inputs)

    def __call__(self, shape: Shape) -> Call:
        logits, target = self.data(shape)
        logits = logits.detach().to(self.dtype).requires_grad_()
        widen = self.widened and self.dtype != torch.float32
        return lambda: torch.autograd.grad(self.loss(logits.float() if widen else logits, target), logits)[0]


def _moments(window: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: segfuse.local_moments(x, y.float(), window=window).cov.sum()


def _points(shape: Shape, points: int) -> tuple[Tensor, list[Tensor]]:
    random = torch.Generator().manual_seed(0)
    return balls(shape)[0], [shape[-1] * torch.rand(points, 2, generator=random) for _ in range(shape[0])]


def cases(op: str) -> Iterator[Case]:
    sf = segfuse
    if op in ("pixel_stats", "formula"):
        fused = ("ce", "focal") if op == "formula" else ("dice", "dice_ce", "four")  # the gradient ahead, or in a pass
        for loss in fused:
            for shape in (BINARY, IMAGES, VOLUMES):
                yield Case(LOSSES[loss].title, shape, Gradient(LOSSES[loss].segfuse(sf)), Gradient(LOSSES[loss].plain))
        if op == "pixel_stats":
            for shape, dtype in ((BINARY, torch.float16), (IMAGES, torch.bfloat16)):
                name = f"Dice {str(dtype)[6:]}"
                yield Case(
                    name, shape, Gradient(sf.DiceLoss(), dtype), Gradient(LOSSES["dice"].plain, dtype, widened=True)
                )
    elif op in ("ssim", "cmssl", "local_moments"):
        for shape, window in WINDOWS.values():
            name = f"window {window}"
            if op == "local_moments":
                yield Case(name, shape, Gradient(_moments(window)))
                continue
            plain = Gradient(LOSSES[op].plain) if (op, window) in (("ssim", 11), ("cmssl", 3)) else None
            loss = sf.SSIMLoss(window=window) if op == "ssim" else sf.CMSSLLoss(window=window)
            yield Case(name, shape, Gradient(loss), plain)
    elif op == "lovasz_extension":
        plain = LOSSES["lovasz"].plain
        for shape, per_image, dtype in (
            (BINARY, True, torch.float32),
            (BINARY, False, torch.float32),
            (BINARY, True, torch.float16),
            (IMAGES, True, torch.float32),
            (IMAGES, False, torch.float32),
            (IMAGES, False, torch.bfloat16),
        ):
            name = f"{'images' if per_image else 'batch'} {str(dtype)[6:]}"
            own = Gradient(lambda x, y, p=per_image: plain(x, y, p), dtype, widened=True)  # type: ignore[call-arg]
            yield Case(name, shape, Gradient(sf.LovaszLoss(per_image=per_image), dtype), own)
    elif op in ("erosion", "disk_sums"):
        loss = sf.HausdorffERLoss() if op == "erosion" else sf.HausdorffCVLoss()
        for shape in ERODED:
            yield Case(type(loss).__name__, shape, Gradient(loss, data=balls))
    elif op == "pairwise_hausdorff":
        for points in (20, 500):
            for alpha in (-1.0, -9.0):
                loss = sf.WeightedHausdorffLoss(alpha=alpha)
                data = lambda shape, points=points: _points(shape, points)  # noqa: E731
                yield Case(f"{points} points, alpha {alpha:g}", (4, 1, 256, 256), Gradient(loss, data=data))
    elif op == "distance_transform_edt":
        for shape in DISTANCES.values():
            for name in MASKS:
                for mode, options in MODES.items():
                    spacing = {k: v[: len(shape) - 1] for k, v in options.items() if k == "spacing"}
                    yield Case(f"{name}, {mode}", shape, _distances(name, {**options, **spacing}))


def _distances(name: str, options: dict[str, Any]) -> Callable[[Shape], Call]:
    def build(shape: Shape) -> Call:
        x = mask(name, shape)
        return lambda: segfuse.distance_transform_edt(x, **options)

    return build


OPS = (
    "pixel_stats",
    "formula",
    "ssim",
    "cmssl",
    "local_moments",
    "lovasz_extension",
    "erosion",
    "disk_sums",
    "pairwise_hausdorff",
    "distance_transform_edt",
)  # top_k is torch's sort


def on(backend: str, call: Call) -> Timed:
    def run() -> object:
        with segfuse.use_backend(backend):
            return call()

    return lambda: None, run


def verify(case: Case, name: str, found: Any, expected: Any, allowed: float) -> None:
    """Of the mean, since a pixel at a threshold may fall on either side."""
    difference = float((found.float() - expected.float()).abs().mean() / expected.float().abs().mean())
    if not difference <= allowed:
        sys.exit(f"{case.name} {case.shape}: {name} differs by {difference:.1e} of the mean")


def seconds(timed: Timed) -> float:
    start = time.perf_counter()
    timed[1]()
    return time.perf_counter() - start


def row(op: str, case: Case, share: float) -> str:
    call = case.build(case.shape)
    calls = {name: on(name, call) for name in ("cpp", "numba")}
    expected, found = (timed[1]() for timed in calls.values())  # compiles
    verify(case, "numba", found, expected, CLOSE)
    plain = on("reference", call) if case.plain is None else (lambda: None, case.plain(case.shape))
    slow = op == "distance_transform_edt" or (case.plain is None and _heavy(case)) or seconds(plain) > SLOW
    if not slow:
        verify(case, "plain torch", plain[1](), expected, ROUGH)
        calls["torch"] = plain
    took = {name: statistics.median(samples) * 1e3 for name, samples in interleave(calls, share).items()}
    shape = "x".join(map(str, case.shape))
    cpp, ours = took["cpp"], took["numba"]
    line = f"{op:22} {case.name:26} {shape:15} {cpp:9.2f} {ours:9.2f} {ours / cpp:7.2f}"
    if slow:
        return f"{line}{'-':>11}{'-':>8}"
    mark = "*" if case.plain is None else " "
    return f"{line} {took['torch']:10.2f} {took['torch'] / ours:7.2f}{mark}"


def _heavy(case: Case) -> bool:
    """Long windows and balls as convolutions, or a table of all distances."""
    volume = len(case.shape) == 5
    return "window 33" in case.name or "500 points" in case.name or (volume and case.name in LONG)


def _soft(shape: Shape) -> tuple[Tensor, Tensor]:
    logits, _ = inputs(shape)
    return logits, torch.full(shape, 0.5)


GENERAL = "soft targets"  # a kernel of its own, which other rare sums take too
FIRST = {GENERAL: Case(GENERAL, BINARY, Gradient(segfuse.DiceLoss(), data=_soft))}


def first_call(op: str) -> float:
    """Of this process, on something small; Numba is imported with it."""
    case = FIRST.get(op) or next(cases(op))
    call = case.build((1, 16, 16) if op == "distance_transform_edt" else (1, 1, 32, 32))
    return seconds(on("numba", call))


def compile_row(op: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        took = []
        for _ in range(2):
            command = [sys.executable, __file__, "--first-call", op]
            run = subprocess.run(
                command, env={**environ, "NUMBA_CACHE_DIR": folder}, capture_output=True, text=True, check=True
            )
            took.append(float(run.stdout))
    return f"{op:22} {took[0]:9.1f} {took[1]:9.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=", ".join(OPS))
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each backend in a row (default 0.5)")
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows whose name or shape has this in it")
    parser.add_argument("--compile", action="store_true", help="the first call, instead of the table")
    parser.add_argument("--first-call", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = (*OPS, *(FIRST if options.compile else ()))
    if unknown := set(options.ops) - set(known):
        parser.error(f"no such op: {', '.join(unknown)}. Try: {', '.join(known)}")
    torch.set_num_threads(THREADS)
    if options.first_call:
        print(first_call(options.first_call))
        return
    machine = environment()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numba", "llvmlite", "numpy"))
    modified = " with changes" if machine["modified"] else ""
    print(f"{machine['cpu']} ({machine['isa']}), {THREADS} threads, {machine['system']}; {versions}")
    print(f"segfuse at commit {machine['commit'][:10]}{modified}, {machine['date']}; wall time")
    if options.compile:
        print(f"\nThe first call of a process, in seconds\n{'':22} {'compiles':>9} {'on disk':>9}")
    else:
        print("Milliseconds; numba / cpp; plain torch (*: the reference backend) and plain torch / numba\n")
        print(f"{'op':22} {'':26} {'shape':15} {'cpp':>9} {'numba':>9} {'/ cpp':>7} {'torch':>10} {'/ numba':>7}")
    steady_heap()
    for op in options.ops or known:
        if options.compile:
            print(compile_row(op), flush=True)
            continue
        for case in cases(op):
            if options.rows not in f"{case.name} {'x'.join(map(str, case.shape))}":
                continue
            print(row(op, case, options.seconds), flush=True)


if __name__ == "__main__":
    main()
