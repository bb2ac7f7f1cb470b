"""What the demo tells: the table on the terminal, ``results.csv`` and ``results.json``."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import segfuse

from .tasks import BATCH, SHA256, STEPS_PER_EPOCH, Task
from .train import LEARNING_RATE
from .workers import Failure, Job, Outcome, usable_cores

METHOD = (
    "Scores: threshold 0.5, pixels of the held-out part pooled; they never stop a training or pick a model. "
    "HD95: 95th percentile of the distances between the contours, in pixels, the larger of both directions. "
    "Time: forward and backward of the loss alone on one thread, median of a step, its share of the median step, and "
    "the sum over the training."
)
CAVEATS = (
    "Read with care: one image (or one head), one seed, and net and schedule were chosen on the same data. "
    "Another seed, or sums in another order, move Dice by up to 0.04: a finer ranking means nothing. "
    "What shows is the trade-off between sensitivity and specificity, and which losses cope with a rare "
    "foreground."
)


@dataclass(frozen=True)
class Row:
    """One training and its outcome."""

    job: Job
    outcome: Outcome

    def record(self) -> dict[str, Any]:
        job, outcome = self.job, self.outcome
        record: dict[str, Any] = {"task": job.task, "id": job.entry.id, "loss": job.entry.label, "call": job.entry.call}
        if isinstance(outcome, Failure):
            return record | {"status": "failed", "note": outcome.reason}
        return record | {
            "status": "ok",
            "dice": round(outcome.dice, 6),
            "sensitivity": round(outcome.sensitivity, 6),
            "specificity": round(outcome.specificity, 6),
            "hausdorff95": None if outcome.hausdorff95 is None else round(outcome.hausdorff95, 3),
            "loss_ms_per_step": round(outcome.loss_ms, 4),
            "step_ms": round(outcome.step_ms, 3),
            "loss_seconds": round(outcome.loss_seconds, 4),
            "train_seconds": round(outcome.train_seconds, 3),
            "loss_share": round(outcome.loss_ms / outcome.step_ms, 4),
            "steps": outcome.steps,
            "last_loss": outcome.last_loss,
            "note": outcome.note,
        }


def line(outcome: Outcome) -> str:
    """One training in a few words."""
    if isinstance(outcome, Failure):
        return f"FAILED: {outcome.reason}"
    return (
        f"Dice {outcome.dice:.3f}  sens {outcome.sensitivity:.3f}  spec {outcome.specificity:.3f}"
        f"  {outcome.train_seconds:.1f} s {outcome.note}"
    ).rstrip()


def table(task: Task, rows: Iterable[Row]) -> str:
    """The survey's table for one task."""
    header = ["loss", "Dice", "sensitivity", "specificity", "HD95", "ms a step", "share", "seconds", ""]
    body: list[list[str]] = []
    failed: list[str] = []
    for row in rows:
        outcome = row.outcome
        if isinstance(outcome, Failure):
            failed.append(f"{row.job.entry.label}: FAILED: {outcome.reason}")
            continue
        scores = [f"{x:.3f}" for x in (outcome.dice, outcome.sensitivity, outcome.specificity)]
        scores.append("-" if outcome.hausdorff95 is None else f"{outcome.hausdorff95:.1f}")
        share = outcome.loss_ms / outcome.step_ms
        cost = [f"{outcome.loss_ms:.2f}", f"{share:.1%}", f"{outcome.loss_seconds:.2f}"]
        body.append([row.job.entry.label, *scores, *cost, outcome.note])
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]

    def text(cells: Sequence[str]) -> str:
        first, *rest = (
            c.ljust(w) if i in (0, len(header) - 1) else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))
        )
        return "  ".join([first, *rest]).rstrip()

    rule = "-" * max(len(text(cells)) for cells in [header, *body])
    return "\n".join(
        [f"Task: {task.title}", f"  {task.split}", rule, text(header), rule, *map(text, body), rule, *failed]
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def facts(tasks: Iterable[Task], *, seed: int, workers: int, seconds: float) -> dict[str, Any]:
    """Everything needed to read the numbers again later."""
    return {
        "settings": {
            "seed": seed,
            "batch": BATCH,
            "steps_per_epoch": STEPS_PER_EPOCH,
            "optimizer": f"Adam, one-cycle, peak learning rate {LEARNING_RATE}",
            "threshold": 0.5,
            "workers": workers,
            "threads_per_training": 1,
        },
        "tasks": {
            task.name: {
                "title": task.title,
                "split": task.split,
                "crop": task.crop,
                "train_foreground": round(float(task.train_mask.float().mean()), 4),
                "test_foreground": round(float(task.test_mask.float().mean()), 4),
                "sha256": {name: SHA256[name] for name in task.files},
            }
            for task in tasks
        },
        "versions": {
            "python": platform.python_version(),
            "segfuse": segfuse.__version__,
            **{package: _version(package) for package in ("torch", "numpy", "matplotlib")},
        },
        "backends": {
            "available": segfuse.backends.available("pixel_stats"),
            "forced": os.environ.get("SEGFUSE_BACKEND"),
        },
        "machine": {
            "cpu": _cpu(),
            "usable_cores": usable_cores(),
            "system": platform.platform(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "seconds": round(seconds, 2),
        "caveats": CAVEATS,
        "method": METHOD,
    }


def save(folder: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Write ``results.csv`` and ``results.json``."""
    records = [row.record() for row in rows]
    columns = list(dict.fromkeys(key for record in sorted(records, key=len, reverse=True) for key in record))
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)
    for row, record in zip(rows, records, strict=True):
        if isinstance(row.outcome, Failure) and row.outcome.details:
            record["traceback"] = row.outcome.details
    text = json.dumps({**about, "results": records}, indent=2, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
