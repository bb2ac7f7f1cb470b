"""`pytest benchmarks [--quick] [--seconds S]`; `measure.py` has the longer run that the README's numbers come from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from bandwidth import Bandwidth, Streams  # noqa: E402
from candidates import steady_heap  # noqa: E402
from targets import describe  # noqa: E402

REPORT = pytest.StashKey[dict[Any, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="a few losses at three shapes")
    parser.addoption("--seconds", type=float, default=0.5, help="time for each benchmark of a loss (default 0.5)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = {}
    steady_heap()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # other libraries warn


@pytest.fixture(scope="session")
def bandwidth() -> Bandwidth:
    return Streams().measure()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> dict[Any, Any]:
    """Lines, and case results as in a results file, printed at the end."""
    return request.config.stash[REPORT]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[REPORT]:
        terminalreporter.section("over the floor, over segfuse, peak memory")
    for entry in config.stash[REPORT].values():
        terminalreporter.write_line(entry if isinstance(entry, str) else describe(entry))
