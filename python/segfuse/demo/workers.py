"""Trainings side by side: single-threaded processes, each on one job at a time, each replaceable if it dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from .registry import Entry
from .tasks import TASKS, Task
from .train import Score, train


@dataclass(frozen=True)
class Job:
    """One loss on one task."""

    entry: Entry
    task: str
    epochs: int
    seed: int
    data_dir: Path | None = None


@dataclass(frozen=True)
class Failure:
    """Why a training gave no result."""

    reason: str
    details: str = ""


Outcome = Score | Failure


def usable_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _attempt(job: Job, task: Task, progress: Callable[[int], None]) -> Outcome:
    try:
        return train(job.entry, task, epochs=job.epochs, seed=job.seed, progress=progress)
    except Exception as error:  # a loss that fails is a row of the report, not the end of the run
        reason = " ".join(str(error).split())
        return Failure(f"{type(error).__name__}: {reason}", traceback.format_exc())


def _serve(connection: Connection) -> None:
    """Body of a worker: jobs in, ``int`` steps and at last an outcome out, until ``None`` comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    torch.set_num_threads(1)
    tasks: dict[str, Task] = {}
    while (job := connection.recv()) is not None:
        if job.task not in tasks:
            tasks[job.task] = TASKS[job.task](job.data_dir)
        connection.send(_attempt(job, tasks[job.task], connection.send))


class _Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the death of the process ends the connection
        self.job: Job | None = None

    def give(self, job: Job | None) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # it died: the next receive says so
            self.connection.send(job)

    def dismiss(self, *, busy: bool) -> None:
        if busy:
            self.process.terminate()
        self.process.join(10)
        self.connection.close()

    def epitaph(self) -> Failure:
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            return Failure(f"its worker process was killed by signal {-code} ({signal.Signals(-code).name})")
        return Failure(f"its worker process ended with exit code {code}")


def run_jobs(
    jobs: Sequence[Job],
    tasks: dict[str, Task],
    *,
    workers: int,
    progress: Callable[[int], None],
    finished: Callable[[Job, Outcome], None],
) -> None:
    """Train every job and call ``finished`` for each; ``progress`` counts the steps of all of them.

    One worker means this process. Each training has one thread, so its result does not depend on ``workers``.
    """
    if workers <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for job in jobs:
                finished(job, _attempt(job, tasks[job.task], progress))
        finally:
            torch.set_num_threads(threads)
        return
    queue = list(reversed(jobs))
    crew: dict[Any, _Worker] = {}
    retired: list[_Worker] = []

    def hire() -> None:
        worker = _Worker()
        crew[worker.connection] = worker
        worker.give(queue.pop())

    try:
        for _ in range(min(workers, len(jobs))):
            hire()
        while crew:
            for connection in wait(list(crew)):
                worker = crew[connection]
                current = worker.job
                assert current is not None
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    message = worker.epitaph()
                    retired.append(crew.pop(connection))
                    if queue:
                        hire()
                else:
                    if not isinstance(message, int):
                        worker.give(queue.pop() if queue else None)
                        if worker.job is None:
                            retired.append(crew.pop(connection))
                if isinstance(message, int):
                    progress(message)
                else:
                    finished(current, message)
    finally:
        for worker in crew.values():
            worker.dismiss(busy=True)
        for worker in retired:
            worker.dismiss(busy=False)
