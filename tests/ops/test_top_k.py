"""The largest values of every row: backends against the reference."""

from __future__ import annotations

import pytest
import torch

from compare import close, same
from segfuse.backends import available, use_backend
from segfuse.ops.top_k import Selection, select

FAST = [name for name in available("top_k") if name != "reference"]


def run(backend: str, values: torch.Tensor, valid: torch.Tensor | None, percent: float) -> Selection:
    with use_backend(backend):
        return select(values, valid, percent)


def agree(backend: str, values: torch.Tensor, valid: torch.Tensor | None, percent: float) -> Selection:
    found, expected = run(backend, values, valid, percent), run("reference", values, valid, percent)
    assert same(found.chosen, expected.chosen)
    assert same(found.number, expected.number)
    if expected.total.isfinite().all():
        close(found.total, expected.total, 1e-12)
    assert same(found.total.isnan(), expected.total.isnan()) and same(found.total.isinf(), expected.total.isinf())
    return found


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 100), (2, 70_001), (1, 200_000), (4, 0), (0, 5)], ids=str)
def test_matches_reference(backend, shape, dtype):
    if backend == "cuda":  # more than one run of a block
        shape = (shape[0], min(shape[1], 20_001))
    random = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
    some = torch.rand(shape, generator=random) < 0.7
    few = torch.zeros(shape, dtype=torch.bool)
    for percent in (1e-9, 10, 99.9):
        for given in (values, values.round(), values.exp(), torch.zeros_like(values), -values.abs()):
            for valid in (None, some, few):
                agree(backend, given, valid, percent)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_that_differ_in_their_last_bit(backend, dtype):
    step = torch.arange(4096).remainder(61)
    values = (1 + step.double() * torch.finfo(dtype).eps).to(dtype)[None]
    assert len(values.unique()) == 61
    for percent in (3, 33, 77):
        agree(backend, values, None, percent)


@pytest.mark.parametrize("backend", FAST)
def test_infinite_and_nan(backend):
    values = torch.tensor([[1.0, torch.inf, torch.nan, -torch.inf, 2.0, torch.nan, 0.0, -0.0]])
    for percent in (12.5, 25, 37.5, 50, 75, 100):
        agree(backend, values, None, percent)
    gone = torch.tensor([[-torch.inf, 1.0, -torch.inf]])
    agree(backend, gone, gone < 0, 100)  # what takes part is smaller than all that does not
    assert run(backend, values, values == values, 50).chosen.flatten().tolist() == [1, 1, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("backend", [name for name in FAST if name == "cpp"])
def test_same_bits_for_any_number_of_threads(backend, threads):
    values = torch.randn(2, 400_001, generator=torch.Generator().manual_seed(0)).mul(64).round()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(run(backend, values, None, 30))
    assert all(same(a, b) for other in found[1:] for a, b in zip(found[0], other))
