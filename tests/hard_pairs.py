"""Pairs of probabilities and hard targets from the shared cases, for the tests of ops on boundaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CASES, make
from compare import same, within_rounding
from segfuse.backends import available, use_backend
from segfuse.ops import pixel_stats
from segfuse.ops._hard_pair import HardPair, hard_pair

HARD = [
    name
    for name, case in CASES.items()
    if case.target != "soft" and not case.one_vs_rest and 1 <= len(case.shape) - 2 <= 3 and "many_tiles" not in name
]
FAST = [name for name in available("erosion") if name != "reference"]  # they have these ops or none of them
each_fast = pytest.mark.parametrize("backend", FAST)
Op = Callable[[HardPair], Tensor]


def pair_of(name: str, dtype: torch.dtype, background: bool = True) -> HardPair:
    case = CASES[name]
    if case.shape[1] > 20:
        case = replace(case, shape=(case.shape[0], 5, *case.shape[2:]))
    input, target, call = make(case, dtype)
    return hard_pair(*pixel_stats.check(input, target, **call), include_background=background)


def run(op: Op, pair: HardPair, backend: str) -> tuple[Tensor, Tensor]:
    """The numbers of the groups, and the derivative of a weighted sum of them."""
    p = pair.p.detach().clone().requires_grad_()
    with use_backend(backend):
        value = op(replace(pair, p=p))
        factors = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
        (grad,) = torch.autograd.grad((value * factors).sum(), p)
    return value.detach(), grad


def wider(pair: HardPair) -> HardPair:
    return replace(pair, p=pair.p.double(), weight=None if pair.weight is None else pair.weight.double())


def matches_reference(op: Op, pair: HardPair, backends: list[str] = FAST) -> None:
    exact, plain = run(op, wider(pair), "reference"), run(op, pair, "reference")
    ignored = (pair.code < 0).expand(pair.p.shape)
    for name in backends:
        fast = run(op, pair, name)
        assert fast[1].dtype == pair.p.dtype
        for what, e, p, f in zip(("value", "gradient"), exact, plain, fast, strict=True):
            within_rounding(f, p, e, pair.p.dtype, f"{what} of {name}")
        assert not fast[1][ignored].any() and not fast[1][:, : pair.first].any()


def same_for_any_threads(op: Op, pair: HardPair) -> None:
    for backend in FAST:
        if backend == "cuda":
            continue
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(op, pair, backend))
        for value, grad in found[1:]:
            assert same(value, found[0][0]) and same(grad, found[0][1])


def blobs(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and 0/1 labels (N, 1, *spatial): a ball, and a ball that misses it. No probability is 0 or 1: where all
    errors are the same, the rounding of a mean decides whether it is above 1/2."""
    random = torch.Generator().manual_seed(seed)
    sides = torch.tensor(shape[2:]).float()
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(s)) for s in shape[2:]], indexing="ij"), -1)
    x, y = torch.empty(shape), torch.empty(shape, dtype=torch.int64)
    for n in range(shape[0]):
        centre = sides * (0.4 + 0.2 * torch.rand(len(sides), generator=random))
        radius = 0.3 * float(sides.min())
        y[n, 0] = ((grid - centre).norm(dim=-1) < radius).long()
        x[n, 0] = 2 * (radius - (grid - centre - 0.6 * radius * torch.randn(len(sides), generator=random)).norm(dim=-1))
    return x.clamp(-3, 3) + 0.5 * torch.randn(shape, generator=random), y


def blob_pair(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **call: Any) -> HardPair:
    x, y = blobs(shape)
    return hard_pair(*pixel_stats.check(x.to(dtype), y, **call))
