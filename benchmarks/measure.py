"""Measure every loss against its peers in one run, judge the targets, and write `results/<cpu>-<date>.json`.

    python benchmarks/measure.py                       everything (about an hour on two cores with all libraries)
    python benchmarks/measure.py --quick               a few losses at three shapes, in minutes
    python benchmarks/measure.py --losses dice focal --shapes 16x1x512x512 --libraries monai
    python benchmarks/measure.py --append --shapes 2x1x128x128x128      more cases for the file of this machine

For each loss at each shape:

1. **Check.** Every candidate runs forward and backward once. Value and gradient must equal those of the plain torch
   code, or of segfuse set to a library's way of reducing, to 1e-4 (the gradient: of its largest entry), for CMSSL in
   float64. What differs is not timed.
2. **Memory.** One more run each, with the peak of the resident set (`candidates.peak_extra`).
3. **Time.** Candidates take turns, and so do the streaming reads and copies that give the floor: a slow minute of the
   machine hits all alike. Every call starts with `logits.grad = None`, set before the clock. Best and median are kept;
   ratios use the best.

Run it on an idle machine. Libraries that are not installed are left out. To add them beside a torch that must stay as
it is:

    pip install --no-deps monai segmentation-models-pytorch kornia torchvision && pip install kornia_rs
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bandwidth import MIB, Streams
from candidates import Case, Timed, interleave, peak_extra, segfuse, small_calls, steady_heap
from peers import EVERY_SHAPE, LIBRARIES, LOSSES, PACKAGES, SMALL, shapes_of
from targets import describe, describe_targets, judge

QUICK = {
    "losses": ["focal", "dice", "dice_ce", "four"],
    "shapes": [(16, 1, 512, 512), (2, 14, 96, 96, 96), SMALL],
    "seconds": 0.5,
}
RESULTS = Path(__file__).parent / "results"


def summary(samples: list[float]) -> dict[str, float]:
    return {"best_ms": min(samples) * 1e3, "median_ms": statistics.median(samples) * 1e3, "calls": len(samples)}


def measure_case(case: Case, streams: Streams, seconds: float) -> dict[str, Any]:
    case.verify_all()
    peaks: dict[str, float | None] = {}
    for name in case.candidates:
        case.clear()
        peak = peak_extra(case.step(name))
        peaks[name] = None if peak is None else peak / MIB

    here = Streams(case.logits.nbytes)
    calls: dict[str, Timed] = {name: (case.clear, case.step(name)) for name in case.candidates}
    for prefix, stream in (("memory", streams), ("here", here)):
        calls |= {f"{prefix} {name}": (case.clear, run) for name, run in stream.calls().items()}
    samples = interleave(calls, seconds)
    case.clear()

    memory = streams.bandwidth({name: min(samples[f"memory {name}"]) for name in streams.calls()})
    local = here.bandwidth({name: min(samples[f"here {name}"]) for name in here.calls()})
    return {
        "loss": case.loss,
        "shape": list(case.shape),
        "floor_ms": case.floor(memory) * 1e3,
        "floor_here_ms": case.floor(local) * 1e3,
        "bandwidth": asdict(memory),
        "bandwidth_here": asdict(local),
        "gradient_mib": case.logits.nbytes / MIB,
        "times": {name: summary(samples[name]) for name in case.candidates},
        "peak_mib": peaks,
        "baseline": {name: candidate.baseline for name, candidate in case.candidates.items()},
        "not_compared": case.missing,
        "notes": case.notes,
    }


def measure_small(seconds: float) -> dict[str, dict[str, float]]:
    calls = small_calls()
    interleave(calls, 0.1)  # warm
    return {name: summary(taken) for name, taken in interleave(calls, seconds).items()}


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""

    def output(*command: str) -> str:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def read(path: str) -> str:
        return Path(path).read_text().strip() if Path(path).exists() else ""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    model = re.search(r"^model name\s*:\s*(.*)$", read("/proc/cpuinfo"), re.MULTILINE)
    try:
        isa = importlib.import_module("segfuse._cpp").isa_info()["used"]
    except (ImportError, AttributeError, KeyError):
        isa = None
    packages = ("torch", "segfuse", *PACKAGES.values())
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": isa,
        "cache": read("/sys/devices/system/cpu/cpu0/cache/index3/size"),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "huge_pages": read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "system": "-".join((platform.system(), platform.machine(), *platform.libc_ver())),
        "compiler": output("c++", "--version").partition("\n")[0],
        "load_before": os.getloadavg()[0],
        "commit": output("git", "rev-parse", "HEAD"),
        "modified": bool(output("git", "status", "--porcelain", "--untracked-files=no", "--", "../csrc", "../python")),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
            "segfuse": segfuse().__version__,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few losses at three shapes, short")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, metavar="LOSS", help=", ".join(LOSSES))
    parser.add_argument("--shapes", nargs="+", help="like 16x1x512x512")
    parser.add_argument("--libraries", nargs="*", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--seconds", type=float, help="time for each candidate at each shape (default 1)")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads")
    parser.add_argument("--append", action="store_true", help="add to a file of the same machine and versions")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<cpu>-<date>.json")
    options = parser.parse_args()
    chosen: dict[str, Any] = {"losses": list(LOSSES), "shapes": EVERY_SHAPE, "seconds": 1.0}
    if options.quick:
        chosen = QUICK
    losses, seconds = options.losses or chosen["losses"], options.seconds or chosen["seconds"]
    shapes = [tuple(map(int, text.split("x"))) for text in options.shapes or ()] or chosen["shapes"]
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    steady_heap()

    machine = environment()
    cpu = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", machine["cpu"].lower())).strip("-")
    path = options.output or RESULTS / f"{cpu}-{machine['date']}.json"
    results: dict[str, Any] = {"machine": machine, "cases": []}
    if options.append and path.exists():
        results = json.loads(path.read_text())
        for key in ("cpu", "threads", "isa", "versions"):
            if results["machine"][key] != machine[key]:
                sys.exit(f"{path.name} has another {key}: {results['machine'][key]}, now {machine[key]}")
        for case in results["cases"]:
            case.setdefault("commit", results["machine"]["commit"])
        results["machine"] |= {key: machine[key] for key in ("commit", "modified", "load_before")}
        machine = results["machine"]

    def save() -> None:
        machine["load_after"] = os.getloadavg()[0]
        results["targets"] = judge(results)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")

    streams = Streams()
    for shape in shapes:
        for loss in losses:
            if shape not in shapes_of(loss):
                continue
            case = measure_case(Case(loss, shape, options.libraries), streams, seconds)
            case["commit"] = machine["commit"]
            others = [c for c in results["cases"] if (c["loss"], tuple(c["shape"])) != (loss, shape)]
            results["cases"] = [*others, case]
            print(describe(case), flush=True)
            save()
    if SMALL in shapes:
        results["small"] = measure_small(seconds)
        save()
        for name, timing in results["small"].items():
            print(f"  {name:30} {timing['best_ms'] * 1e3:8.1f} us")
    print(describe_targets(results["targets"]))
    print(f"wrote {path.name}")
    wrong = {
        case["loss"]: case["not_compared"]["segfuse"] for case in results["cases"] if "segfuse" in case["not_compared"]
    }
    if wrong:
        sys.exit(f"segfuse differs from plain torch or does not run: {wrong}")


if __name__ == "__main__":
    main()
