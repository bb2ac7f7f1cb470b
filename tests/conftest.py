"""Fixtures of every test: the backends that run here, the number of threads, and a count of kernel calls.

Without a GPU the CUDA kernels run as C++, one block after the other (tests/cuda/emulation.h): `make test` builds them
into build/emulation. They then are the backend ``cuda`` of these tests, on CPU tensors, when it is forced.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def emulate() -> None:
    built = sorted(Path(__file__).parent.parent.glob("build/emulation/_cuda*.so"))
    if torch.cuda.is_available() or not built:
        return
    spec = importlib.util.spec_from_file_location("segfuse._cuda", built[0])
    assert spec is not None and spec.loader is not None
    sys.modules["segfuse._cuda"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


emulate()  # before the backends are looked up

import segfuse  # noqa: E402

try:
    from segfuse import _cpp
except ImportError:  # a package built without its extension
    _cpp = None

KERNELS = (
    *("pixel_stats_forward", "pixel_stats_backward", "pixel_stats_map", "formula_forward", "formula_backward"),
    *("lovasz_extension_forward", "lovasz_extension_backward", "top_k_forward"),
)


@pytest.fixture(params=segfuse.backends.available("pixel_stats"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every backend of this machine in turn, forced."""
    with segfuse.use_backend(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of every native function by name."""
    if _cpp is None:
        pytest.skip("the C++ extension is not built")
    count: Counter[str] = Counter()

    def counted(name: str) -> None:
        native = getattr(_cpp, name)

        def call(**arguments: object) -> object:
            count[name] += 1
            return native(**arguments)

        monkeypatch.setattr(_cpp, name, call)

    for name in KERNELS:
        counted(name)
    return count
