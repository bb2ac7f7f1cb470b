"""Every loss of the table in `peers.py`, every shape, every candidate: forward plus backward, and peak memory."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import pytest

from bandwidth import MIB, Bandwidth
from candidates import Case, NotComparable, Timed, peak_extra, segfuse, small_calls
from measure import QUICK
from peers import EVERY_SHAPE, LIBRARIES, LOSSES, shapes_of
from targets import dims


@lru_cache
def library_losses(library: str, classes: int) -> frozenset[str]:
    """Which losses `library` has; none if it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return frozenset(LIBRARIES[library](classes))
        except Exception:
            return frozenset()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "candidate" in metafunc.fixturenames:
        chosen: dict[str, Any] = {"shapes": EVERY_SHAPE, "losses": LOSSES}
        if metafunc.config.getoption("--quick"):
            chosen = QUICK
        metafunc.parametrize(
            ("shape", "loss", "candidate"),
            [
                pytest.param(shape, loss, candidate, id=f"{dims(shape)}-{loss}-{candidate}")
                for shape in chosen["shapes"]
                for loss in chosen["losses"]
                if shape in shapes_of(loss)
                for candidate in ("segfuse", "eager", "compile", *LIBRARIES)
                if (candidate != "compile" or LOSSES[loss].compiles)
                if candidate not in LIBRARIES or loss in library_losses(candidate, shape[1])
            ],
        )
    elif "name" in metafunc.fixturenames:
        try:
            names = ["eager BCE", *segfuse().losses.__all__]
        except ImportError:
            names = []
        metafunc.parametrize("name", names)


@lru_cache(maxsize=1)
def case(loss: str, shape: tuple[int, ...]) -> Case:
    return Case(loss, shape)


def test_forward_backward(
    benchmark: Any,
    bandwidth: Bandwidth,
    report: dict[Any, Any],
    request: pytest.FixtureRequest,
    shape: tuple[int, ...],
    loss: str,
    candidate: str,
) -> None:
    current = case(loss, shape)
    row = report.setdefault(
        (loss, shape),
        {
            "loss": loss,
            "shape": shape,
            "floor_ms": current.floor(bandwidth) * 1e3,
            "bandwidth": asdict(bandwidth),
            "gradient_mib": current.logits.nbytes / MIB,
            "times": {},
            "peak_mib": {},
            "baseline": {},
            "not_compared": {},
            "notes": current.notes,
        },
    )
    try:
        if candidate in current.missing:
            raise NotComparable(current.missing[candidate])
        current.verify(candidate)
    except NotComparable as reason:
        row["not_compared"][candidate] = str(reason)
        if candidate == "segfuse":
            pytest.fail(str(reason))
        pytest.skip(f"not comparable: {reason}")

    step, took = current.step(candidate), 0.0

    def timed() -> object:
        nonlocal took
        start = time.perf_counter()
        value = step()
        took = time.perf_counter() - start
        return value

    peak = peak_extra(timed)
    least = 1 if took > 2 else 2 if took > 0.5 else 3
    rounds = max(least, min(300, int(request.config.getoption("--seconds") / took)))
    benchmark.group = f"{loss} {dims(shape)}"
    benchmark.pedantic(step, setup=current.clear, rounds=rounds)
    current.clear()

    stats = benchmark.stats.stats
    row["times"][candidate] = {"best_ms": stats.min * 1e3, "median_ms": stats.median * 1e3}
    row["baseline"][candidate] = "segfuse"
    row["peak_mib"][candidate] = None if peak is None else peak / MIB
    benchmark.extra_info |= {"floor_ms": row["floor_ms"], "peak_mib": row["peak_mib"][candidate]}


@lru_cache
def calls() -> dict[str, Timed]:
    return small_calls()


def test_small_call(benchmark: Any, name: str) -> None:
    prepare, run = calls()[name]
    benchmark.group = "every class at 4x1x64x64"
    benchmark.pedantic(run, setup=prepare, rounds=300, warmup_rounds=5)
