"""Everything about the CUDA kernels in one run on a machine with a GPU, in under nine minutes:

    python benchmarks/gpu.py

1. Builds and installs the package with kernels for this GPU, where that was not done.
2. Runs the GPU tests (`tests/cuda/test_gpu.py`). A failure is printed; after the timings the run then ends with an
   error.
3. Measures the ceilings: bandwidth of a read and of a copy of 2 GiB, and the time of an empty launch.
4. Times every kernel: forward and backward apart, by CUDA events, median of at least 50 calls, with a cold L2 cache (it
   is overwritten between calls) and a warm one; host time of a call; peak memory beyond the gradient. Beside it plain
   torch code, `torch.compile` of it, MONAI, and for distance transforms CuPy, where they are installed.
5. Writes `results/gpu-<device>-<date>.json` and prints a table with the ratio to the floor, the predicted ratio,
   and the ratio to every peer. What is not installed is printed as absent.

A candidate is timed only if its value and gradient equal those of the plain code.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peers import LOSSES, compiled, held, monai

ROOT = Path(__file__).parent.parent
LIMIT = 520  # seconds; what is left then is not measured, and says so
GIB = 1 << 30
# (loss, shape, dtype of the logits, dtype of the labels)
F32, BF16, U8, I64 = torch.float32, torch.bfloat16, torch.uint8, torch.int64
CASES: list[tuple[str, tuple[int, ...], torch.dtype, torch.dtype]] = [
    ("dice_ce", (2, 14, 128, 128, 128), F32, U8),
    ("dice_ce", (2, 14, 128, 128, 128), BF16, U8),
    ("dice", (2, 14, 128, 128, 128), F32, U8),
    ("focal", (16, 1, 512, 512), F32, U8),
    ("dice", (16, 1, 512, 512), F32, U8),
    ("dice", (16, 1, 512, 512), BF16, U8),
    ("dice_ce", (16, 1, 512, 512), F32, U8),
    ("four", (8, 19, 512, 512), F32, I64),
    ("ce", (8, 19, 512, 512), F32, I64),
    ("dice_ce", (8, 19, 512, 512), F32, I64),
    ("dice_ce", (1, 117, 128, 128, 128), F32, U8),
    ("lovasz", (8, 19, 512, 512), F32, I64),
    ("ssim", (4, 1, 512, 512), F32, U8),
    ("ssim", (2, 1, 128, 128, 128), F32, U8),
    ("hausdorff_dt", (2, 14, 96, 96, 96), F32, U8),
    ("boundary", (2, 14, 96, 96, 96), F32, U8),
]
# Time over the floor that was predicted for an H100, by loss and classes
PREDICTED = {("dice", 1): 1.3, ("focal", 1): 1.3, ("dice_ce", 1): 1.3}
TRANSFORMS = [(26, 128, 128, 128), (16, 512, 512)]


def build() -> None:
    """Installs the package with its kernels, unless they are there."""
    if importlib.util.find_spec("segfuse") and importlib.util.find_spec("segfuse._cuda"):
        return
    print("building ...", flush=True)
    tools = ["scikit-build-core>=0.10", "pybind11>=2.12", "cmake", "ninja"]
    options = ["cmake.define.SEGFUSE_CUDA=ON", "cmake.define.CMAKE_CUDA_ARCHITECTURES=native"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *tools], check=True)
    settings = [f"--config-settings={option}" for option in options]
    subprocess.run([*pip, "--no-build-isolation", "--no-deps", *settings, str(ROOT)], check=True)
    importlib.invalidate_caches()


def tests() -> str:
    """The last line of the GPU tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", str(ROOT / "tests/cuda/test_gpu.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:])
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines else done.stderr[-500:]


class Clock:
    """Times calls by CUDA events; `cold` overwrites the L2 cache before each."""

    def __init__(self) -> None:
        self.flood = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")

    def __call__(self, run: Callable[[], object], cold: bool, before: Callable[[], object] = lambda: None) -> float:
        """Median seconds of one call."""
        samples, events = [], []
        for i in range(60):
            before()
            if cold:
                self.flood.fill_(i)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        samples = [start.elapsed_time(end) / 1e3 for start, end in events[10:]]
        return statistics.median(samples)


def ceilings(clock: Clock) -> dict[str, float]:
    source = torch.ones(2 * GIB // 4, device="cuda")
    sink = torch.empty_like(source)
    tiny = torch.empty(1, device="cuda")
    return {
        "copy": 2 * source.nbytes / clock(lambda: sink.copy_(source), cold=False),
        "read": source.nbytes / clock(lambda: source.sum(), cold=False),
        "launch_us": clock(lambda: tiny.fill_(0), cold=False) * 1e6,
    }


def inputs(shape: tuple[int, ...], dtype: torch.dtype, labels: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits that lean towards their labels, which lie in patches."""
    N, C, *spatial = shape
    random = torch.Generator("cuda").manual_seed(0)
    coarse = torch.randint(0, max(C, 4), (N, 1, *(s // 16 for s in spatial)), generator=random, device="cuda")
    for axis in range(2, len(shape)):
        coarse = coarse.repeat_interleave(16, axis)
    logits = 2 * torch.randn(shape, generator=random, device="cuda", dtype=dtype)
    if C == 1:
        y = (coarse == 0).to(labels)
        logits += (4 * y - 2).to(dtype)
        return logits.requires_grad_(), y
    logits.scatter_add_(1, coarse, torch.full_like(coarse, 2, dtype=dtype))
    return logits.requires_grad_(), coarse.squeeze(1).to(labels)


def gradient_of(call: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    value = call(x, y)
    (grad,) = torch.autograd.grad(value, x)
    return float(value), grad


def peak(run: Callable[[], object]) -> int:
    """Bytes that a call takes beyond what was there."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(call: Any, x: Tensor, y: Tensor, clock: Clock) -> dict[str, Any]:
    def step() -> None:
        call(x, y).backward()

    def clear() -> None:
        x.grad = None

    found: dict[str, Any] = {}
    for name, cold in (("cold", True), ("warm", False)):
        found[f"forward_{name}"] = clock(lambda: call(x, y), cold)
        values: list[Tensor] = []

        def prepare(values: list[Tensor] = values) -> None:
            values[:] = [call(x, y)]
            x.grad = None

        found[f"backward_{name}"] = clock(lambda values=values: values[0].backward(), cold, prepare)
    clear()
    found["peak"] = peak(step)
    clear()
    begin = time.perf_counter()
    for _ in range(20):
        clear()
        step()
    found["host"] = (time.perf_counter() - begin) / 20
    torch.cuda.synchronize()
    clear()
    return found


def measure_case(
    loss: str, shape: tuple[int, ...], dtype: torch.dtype, labels: torch.dtype, clock: Clock, ceiling: dict[str, float]
) -> dict[str, Any]:
    segfuse = importlib.import_module("segfuse")
    row, C = LOSSES[loss], shape[1]
    x, y = inputs(shape, dtype, labels)
    wide = y if C == 1 else y.long()
    candidates: dict[str, tuple[Any, Tensor]] = {"segfuse": (row.segfuse(segfuse), y)}
    missing: dict[str, str] = {}
    if row.compiles:
        candidates["eager"] = (row.plain, wide)
        candidates["compile"] = (compiled(row.plain), wide)
    try:
        peer = monai(C).get(loss)
        if peer is not None and not peer.options:
            candidates["monai"] = (peer.call, held("monai", wide, C))
    except Exception as error:
        missing["monai"] = f"absent: {error}"
    case: dict[str, Any] = {
        "loss": loss,
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "labels": str(labels).removeprefix("torch."),
        "bytes_forward": x.nbytes + y.nbytes,
        "bytes_backward": 2 * x.nbytes + y.nbytes,
        "gradient": x.nbytes,
        "times": {},
        "missing": missing,
    }
    value, grad = gradient_of(*candidates["segfuse"][:1], x, y)
    for name, (call, target) in candidates.items():
        try:
            if name != "segfuse":
                other, other_grad = gradient_of(call, x, target)
                scale = value / other if name == "monai" else 1.0  # a mean over other counts
                error = (other_grad.double() * scale - grad.double()).abs().max() / grad.double().abs().max()
                if abs(other * scale - value) > 1e-3 * abs(value) or float(error) > (1e-3 if dtype == F32 else 3e-2):
                    missing[name] = f"differs: value {other} against {value}, gradient by {float(error):.2g}"
                    continue
                del other_grad
            case["times"][name] = measure(call, x, target, clock)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    floor = (case["bytes_forward"] + case["bytes_backward"]) / ceiling["copy"]
    own = case["times"].get("segfuse")
    if own:
        case["floor"] = floor
        case["ratio"] = (own["forward_cold"] + own["backward_cold"]) / floor
    return case


def measure_transform(shape: tuple[int, ...], clock: Clock, ceiling: dict[str, float]) -> dict[str, Any]:
    segfuse = importlib.import_module("segfuse")
    noise = torch.rand(shape[0], 1, *(s // 16 for s in shape[1:]), device="cuda")
    mask = torch.nn.functional.interpolate(noise, scale_factor=16).squeeze(1) > 0.5
    bytes = mask.numel() * (9 if len(shape) == 3 else 12)
    times = {
        mode: clock(lambda mode=mode: segfuse.distance_transform_edt(mask, mode=mode), cold=True)
        for mode in ("inside", "two_sided")
    }
    try:
        cupy = importlib.import_module("cupy")
        edt = importlib.import_module("cupyx.scipy.ndimage").distance_transform_edt
        images = [cupy.from_dlpack(m.to(torch.uint8)) for m in mask]
        times["cupy"] = clock(lambda: [edt(image) for image in images], cold=True)
    except Exception as error:
        times["cupy"] = f"absent: {type(error).__name__}"
    return {"shape": list(shape), "floor": bytes / ceiling["copy"], "times": times}


def environment() -> dict[str, Any]:
    def output(*command: str) -> str:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "driver": output("nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"),
        "date": datetime.date.today().isoformat(),
        "commit": output("git", "rev-parse", "HEAD"),
        "modified": bool(output("git", "status", "--porcelain", "--untracked-files=no", "--", "csrc", "python")),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "segfuse", "monai", "cupy-cuda12x", "triton")},
            "cuda": torch.version.cuda,
        },
    }


def table(results: dict[str, Any]) -> str:
    heads = ("us fwd", 8), ("us bwd", 8), ("/ floor", 8), ("predicted", 9), ("eager", 7), ("compile", 8), ("monai", 7)
    lines = [" ".join([f"{'case':44}", *(f"{head:>{width}}" for head, width in heads)])]
    for case in results["cases"]:
        own = case["times"].get("segfuse")
        name = f"{case['loss']} {case['shape']} {case['dtype']}"
        if not own:
            lines.append(f"{name:44} {case['missing']}")
            continue
        mine = own["forward_cold"] + own["backward_cold"]

        def ratio(peer: str, case: Any = case, mine: float = mine) -> str:
            times = case["times"].get(peer)
            return f"{(times['forward_cold'] + times['backward_cold']) / mine:.2f}" if times else "absent"

        predicted = PREDICTED.get((case["loss"], case["shape"][1]), 1.2)
        lines.append(
            f"{name:44} {own['forward_cold'] * 1e6:8.1f} {own['backward_cold'] * 1e6:8.1f} {case['ratio']:8.2f} "
            f"{predicted:9.2f} {ratio('eager'):>7} {ratio('compile'):>8} {ratio('monai'):>7}"
        )
    for case in results["transforms"]:
        own = {name: f"{t * 1e6:.1f} us" if isinstance(t, float) else t for name, t in case["times"].items()}
        lines.append(f"distance transform {case['shape']}: floor {case['floor'] * 1e6:.1f} us, {own}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu-<device>-<date>.json")
    options = parser.parse_args()
    begin = time.monotonic()
    if not torch.cuda.is_available():
        sys.exit("this needs a GPU: torch finds none")
    build()
    machine = environment()
    print(json.dumps(machine, indent=1), flush=True)
    passed = tests()
    print(f"GPU tests: {passed} ({time.monotonic() - begin:.0f} s so far)", flush=True)
    clock = Clock()
    ceiling = ceilings(clock)
    print({name: f"{value:.4g}" for name, value in ceiling.items()}, flush=True)
    results: dict[str, Any] = {"machine": machine, "tests": passed, "ceilings": ceiling, "cases": [], "transforms": []}
    for shape in TRANSFORMS:
        results["transforms"].append(measure_transform(shape, clock, ceiling))
    left_out = []
    for loss, shape, dtype, labels in CASES:
        if time.monotonic() - begin > LIMIT:
            left_out.append(f"{loss} {shape}")
            continue
        torch.cuda.empty_cache()
        results["cases"].append(measure_case(loss, shape, dtype, labels, clock, ceiling))
        print(f"{loss} {shape} {dtype}: {time.monotonic() - begin:.0f} s so far", flush=True)
    name = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    path = options.output or Path(__file__).parent / "results" / f"gpu-{name}-{machine['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    if left_out:
        print(f"no time was left for: {', '.join(left_out)}")
    print(f"wrote {path.name}")
    if "failed" in passed or "error" in passed:
        sys.exit("GPU tests failed")


if __name__ == "__main__":
    main()
