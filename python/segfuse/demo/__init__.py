"""``segfuse demo``: train a small 2-D U-Net once per loss on real data and print the survey's table."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .workers import Job, Outcome

__all__ = ["main"]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_positive.__name__ = "positive integer"  # argparse prints it


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segfuse demo",
        description="Train a small 2-D U-Net once per loss on real data; print and save the table of the survey.",
    )
    add = parser.add_argument
    add("--losses", help="comma-separated, or the groups 'survey' and 'all' (default: all)")
    add("--task", help="nuclei, outlines, head, comma-separated (default: nuclei; without --losses also the "
        "survey's losses on outlines)")  # fmt: skip
    add(
        "--epochs",
        type=_positive,
        help="passes of 160 random crops, 20 steps (default: nuclei 6, outlines 10, head 15)",
    )
    add("--seed", type=int, default=0, help="of the weights, the crops and their order (default: 0)")
    add("--out", type=Path, default=Path("segfuse-demo"), help="folder for the results (default: segfuse-demo)")
    add("--workers", type=_positive, help="trainings at a time, one thread each (default: the cores, at most 2)")
    add("--data-dir", type=Path, help="folder with the data files, if not where they were installed")
    add("--list", action="store_true", help="list the losses and end")
    return parser


class _Progress:
    """A bar over the steps of all trainings on a terminal, else one line per training."""

    def __init__(self, steps: int, jobs: int) -> None:
        self.jobs, self.done = jobs, 0
        self.bar = None
        if sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
            from tqdm import tqdm

            self.bar = tqdm(total=steps, unit="step", dynamic_ncols=True, smoothing=0.05)

    def step(self, count: int) -> None:
        if self.bar is not None:
            self.bar.update(count)

    def line(self, text: str) -> None:
        self.done += 1
        text = f"[{self.done:{len(str(self.jobs))}}/{self.jobs}] {text}"
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns:
        0 if every loss was trained, 1 if one failed, 2 if the run could not start, 130 if it was interrupted.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("segfuse demo: interrupted", file=sys.stderr)
        return 130
    except _Stop as error:
        print(f"segfuse demo: error: {error}", file=sys.stderr)
        return 2


class _Stop(Exception):
    """The run cannot start; the message is for the user."""


def _run(arguments: argparse.Namespace) -> int:
    from . import registry

    if arguments.list:
        for entry in registry.entries().values():
            print(f"{entry.id:26}{entry.call}")
        return 0
    from .tasks import STEPS_PER_EPOCH, TASKS, DataError

    names = [name.strip() for name in (arguments.task or "nuclei").split(",")]
    if unknown := [name for name in names if name not in TASKS]:
        raise _Stop(f"unknown task: {', '.join(unknown)}\n  known: {', '.join(TASKS)}")
    try:
        chosen = {name: registry.choose(arguments.losses or "all") for name in names}
        if arguments.losses is None and arguments.task is None:
            chosen["outlines"] = registry.choose("survey")
        tasks = {name: TASKS[name](arguments.data_dir) for name in chosen}
    except (registry.UnknownLoss, DataError) as error:
        raise _Stop(str(error)) from None
    if importlib.util.find_spec("matplotlib") is None:
        raise _Stop("the pictures need matplotlib: pip install 'segfuse[demo]'")
    from . import picture, report
    from .workers import Failure, Job, run_jobs, usable_cores

    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=arguments.out):
            pass  # better now than after the training
    except OSError as error:
        raise _Stop(f"cannot write into the folder for the results: {error}") from None

    def make(name: str) -> list[Job]:
        epochs = arguments.epochs or tasks[name].epochs
        return [Job(entry, name, epochs, arguments.seed, arguments.data_dir) for entry in chosen[name]]

    jobs = [job for name in chosen for job in make(name)]
    workers = min(arguments.workers or min(2, usable_cores()), len(jobs))
    steps = sum(job.epochs * STEPS_PER_EPOCH for job in jobs)
    print(f"{len(jobs)} trainings, {steps} steps, {workers} at a time, into {arguments.out}", file=sys.stderr)

    outcomes: dict[Job, Outcome] = {}
    progress = _Progress(steps, len(jobs))

    def finished(job: Job, outcome: Outcome) -> None:
        outcomes[job] = outcome
        progress.line(f"{job.task:9}{job.entry.label:26}{report.line(outcome)}")

    began = time.perf_counter()
    try:
        longest_first = sorted(jobs, key=lambda job: -job.epochs)
        run_jobs(longest_first, tasks, workers=workers, progress=progress.step, finished=finished)
    finally:
        progress.close()
    seconds = time.perf_counter() - began

    rows = [report.Row(job, outcomes[job]) for job in jobs]
    sections = [(tasks[name], [row for row in rows if row.job.task == name]) for name in chosen]
    for task, part in sections:
        print("\n" + report.table(task, part))
    about = report.facts(tasks.values(), seed=arguments.seed, workers=workers, seconds=seconds)
    report.save(arguments.out, rows, about)
    picture.draw(arguments.out / "predictions.png", sections)
    picture.draw_maps(arguments.out / "maps.png", [task for task, _ in sections])
    print("", *(textwrap.fill(text, 100) for text in (report.METHOD, report.CAVEATS)), sep="\n")
    print(f"{seconds:.0f} s. Saved in {arguments.out}: results.csv, results.json, predictions.png, maps.png")
    failed = [row for row in rows if isinstance(row.outcome, Failure)]
    if failed:
        print(f"segfuse demo: {len(failed)} of {len(rows)} trainings failed, see above", file=sys.stderr)
    return 1 if failed else 0
