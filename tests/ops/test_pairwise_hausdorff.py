"""The weighted Hausdorff distance: the kernel against the reference, both against values by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf, sqrt

import pytest
import torch

from compare import close
from hard_pairs import FAST, HARD, blob_pair, each_fast, matches_reference, pair_of, run, same_for_any_threads, wider
from segfuse.ops.pairwise_hausdorff import pairwise_hausdorff

pytest.importorskip("segfuse._cpp")
SETTINGS = {
    "harmonic": {},
    "power": {"alpha": -9.0},
    "root": {"alpha": -0.5, "eps": 1e-4},
    "least": {"alpha": -inf},
    "power_min": {"form": "power_min"},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", HARD)
def test_matches_reference(name, dtype):
    matches_reference(pairwise_hausdorff, pair_of(name, dtype))
    if pair_of(name, dtype).index:
        matches_reference(partial(pairwise_hausdorff, alpha=-2.0), pair_of(name, dtype, background=False))


@each_fast
@pytest.mark.parametrize("shape", [(2, 1, 61), (1, 1, 33, 35), (1, 1, 9, 10, 11)], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting, shape, backend):
    op = partial(pairwise_hausdorff, **SETTINGS[setting])
    matches_reference(op, blob_pair(shape, torch.float64), [backend])
    fast, exact = run(op, blob_pair(shape), backend), run(op, wider(blob_pair(shape)), "reference")
    close(fast[0], exact[0], 2e-6)
    close(fast[1], exact[1], 1e-5)


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradcheck(setting):
    pair = blob_pair((2, 1, 4, 5), torch.float64, weight_map=torch.rand(2, 4, 5) + 0.1)
    op = lambda p: pairwise_hausdorff(replace(pair, p=p), **SETTINGS[setting])  # noqa: E731
    p = (0.1 + 0.8 * pair.p).requires_grad_()
    assert torch.autograd.gradcheck(op, p)
    assert torch.autograd.gradgradcheck(op, p)


@each_fast
@pytest.mark.parametrize("setting", SETTINGS)
def test_certain_probabilities(setting, backend):
    """p = 1 on a point is a distance of eps, p = 0 everywhere the diagonal: finite, and no power overflows."""
    pair = blob_pair((1, 1, 12, 13))
    for p in (pair.code.float(), 1 - pair.code.float(), torch.zeros(pair.p.shape), torch.ones(pair.p.shape)):
        exact = run(partial(pairwise_hausdorff, **SETTINGS[setting]), replace(pair, p=p.double()), "reference")
        fast = run(partial(pairwise_hausdorff, **SETTINGS[setting]), replace(pair, p=p), backend)
        assert fast[0].isfinite().all() and fast[1].isfinite().all()
        close(fast[0], exact[0], 1e-4)


@each_fast
@pytest.mark.parametrize("setting", SETTINGS)
def test_ignored_rows(setting, backend):
    """A row without a valid pixel has no least value."""
    pair = blob_pair((1, 1, 12, 13), torch.float64)
    code = pair.code.clone()
    code[..., :3, :] = code[..., 7, :] = -1
    op = partial(pairwise_hausdorff, **SETTINGS[setting])
    matches_reference(op, replace(pair, code=code, ignores=True), [backend])


def test_by_hand():
    """A row of two pixels, a point on the first."""
    pair = replace(
        blob_pair((1, 1, 2), torch.float64),
        p=torch.tensor([[[0.25, 0.5]]]).double(),
        code=torch.tensor([[[1, 0]]], dtype=torch.int16),
    )
    near = 0.5 / (0.75 + 1e-6)
    f = 0.75 * 2 + 1e-6, 0.5 + 0.5 * 2 + 1e-6
    close(pairwise_hausdorff(pair)[0, 0], near + 2 / (1 / f[0] + 1 / f[1]), 1e-13)
    close(pairwise_hausdorff(pair, alpha=-inf)[0, 0], near + min(f), 1e-13)
    least = min(1e-6 / (0.25**4 + 5e-7), (1 + 1e-6) / (0.5**4 + 5e-7))
    close(pairwise_hausdorff(pair, form="power_min")[0, 0], near + least, 1e-13)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_points(backend):
    """The pixels of a mask, given as coordinates; coordinates between pixels; none."""
    pair = blob_pair((2, 1, 9, 11), torch.float64)
    points = [(y[0] > 0).nonzero() for y in pair.code]
    expected = run(pairwise_hausdorff, pair, backend)
    found = run(partial(pairwise_hausdorff, points=points), pair, backend)
    close(found[0], expected[0], 1e-13)
    close(found[1], expected[1], 1e-12)
    value, grad = run(partial(pairwise_hausdorff, points=[torch.empty(0, 2), torch.tensor([[2.5, -1]])]), pair, backend)
    close(value[0, 0], sqrt(81 + 121), 1e-13)
    assert not grad[0].any() and grad[1].all()


def test_points_between_pixels_match_reference():
    points = [torch.tensor([[2.25, 3.5], [4.0, 4.0], [-3.0, 20.0]])]
    for setting in SETTINGS.values():
        matches_reference(partial(pairwise_hausdorff, points=points, **setting), blob_pair((1, 1, 9, 11)))


@pytest.mark.parametrize("shape", [(3, 1, 20, 21), (1, 1, 60, 70), (1, 1, 9, 10, 11)], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_same_bits_for_any_number_of_threads(setting, shape, threads):
    same_for_any_threads(partial(pairwise_hausdorff, **SETTINGS[setting]), blob_pair(shape))


@each_fast
@pytest.mark.parametrize("setting", SETTINGS)
def test_nan_is_seen(setting, backend):
    pair = blob_pair((2, 1, 20, 20))
    pair.p[0, 0, 3, 4] = torch.nan
    value, grad = run(partial(pairwise_hausdorff, **SETTINGS[setting]), pair, backend)
    assert value[0].isnan() and value[1].isfinite()
    assert grad[0, 0, 3, 4].isnan() and grad[1].isfinite().all()


WRONG = [{"alpha": 0.0}, {"alpha": 1}, {"alpha": torch.nan}, {"eps": 0.0}, {"form": "max"}, {"points": []}]
WRONG += [{"points": [torch.ones(3)]}, {"points": [torch.ones(3, 3)]}, {"points": [torch.full((1, 2), torch.nan)]}]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="Try: "):
        pairwise_hausdorff(blob_pair((1, 1, 4, 4)), **wrong)
