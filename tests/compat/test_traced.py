"""``torch.jit``: every class with a peer's name as one operator of a trace and of a script."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from test_recorded import TABLE
from test_shared import build, run

pytestmark = pytest.mark.filterwarnings("ignore")

CLASSES = [
    row for row in TABLE if inspect.isclass(getattr(importlib.import_module(f"segfuse.compat.{row[0]}"), row[1]))
]


@pytest.mark.parametrize("row", CLASSES, ids=lambda row: f"{row[0]}-{row[1]}")
def test_trace_and_script(row):
    loss, x, y = build(row)
    value, grad = run(loss, x, y)
    for graph in (torch.jit.trace(loss, (x.detach(), y)), torch.jit.script(loss)):
        found, slope = run(graph, x, y)
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(slope, grad)
