"""Erosions and their gradient: the kernel against the reference, the reference against its definition."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from compare import close, same
from hard_pairs import HARD, blob_pair, each_fast, matches_reference, pair_of, run, same_for_any_threads, wider
from segfuse.ops.erosion import NORMS, erosion

pytest.importorskip("segfuse._cpp")
SETTINGS = {"minmax": {"steps": 4}, "double": {"steps": 3, "alpha": 1.5, "norm": "double"}, "none": {"norm": "none"}}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", HARD)
def test_matches_reference(name, dtype):
    matches_reference(partial(erosion, steps=3), pair_of(name, dtype))
    matches_reference(partial(erosion, steps=3, norm="double"), pair_of(name, dtype, background=False))


@each_fast
@pytest.mark.parametrize("shape", [(2, 1, 61), (2, 1, 45, 50), (1, 1, 150, 131), (1, 1, 20, 21, 22)], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_deep_errors(setting, shape, backend):
    """Regions that survive many erosions."""
    matches_reference(partial(erosion, **SETTINGS[setting]), blob_pair(shape, torch.float64), [backend])
    fast = run(partial(erosion, **SETTINGS[setting]), blob_pair(shape), backend)
    exact = run(partial(erosion, **SETTINGS[setting]), wider(blob_pair(shape)), "reference")
    close(fast[0], exact[0], 1e-5)
    close(fast[1], exact[1], 1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_gradcheck(norm):
    pair = pair_of("binary", torch.float64)
    pair = replace(pair, p=(pair.p[:, :, :6, :5]).contiguous(), code=(1 - pair.code)[:, :, :6, :5].contiguous())
    pair = replace(pair, p=0.1 + 0.8 * pair.p)
    op = lambda p: erosion(replace(pair, p=p), steps=3, norm=norm)  # noqa: E731
    assert torch.autograd.gradcheck(op, pair.p.requires_grad_())
    assert torch.autograd.gradgradcheck(op, pair.p)


@pytest.mark.parametrize("side", [1, 2, 5, 17])
def test_everything_is_wrong(side):
    """Nothing is 0, so that the minimum is stretched too; a single pixel is not."""
    random = torch.Generator().manual_seed(side)
    for shape in ((1, 1, side), (1, 1, side, side), (1, 1, side, 3, side)):
        p = 0.999 + 0.001 * torch.rand(shape, generator=random, dtype=torch.float64)
        pair = replace(blob_pair(shape, torch.float64), p=p, code=torch.zeros(shape, dtype=torch.int16))
        for steps in (1, 2, 4):
            matches_reference(partial(erosion, steps=steps), pair)


@each_fast
def test_ties_share_the_gradient(backend):
    """A plateau of the maximum, mirrored: the gradient is mirrored."""
    p = torch.zeros(1, 1, 9, 9)
    p[0, 0, 2:7, 2:7] = 1
    p[0, 0, 4, 4] = 0.8
    pair = replace(blob_pair((1, 1, 9, 9)), p=p, code=torch.zeros(p.shape, dtype=torch.int16))
    matches_reference(partial(erosion, steps=3), pair)
    _, grad = run(partial(erosion, steps=3), pair, backend)
    assert grad.any() and same(grad, grad.flip(2)) and same(grad, grad.flip(3)) and same(grad, grad.mT)


def test_by_hand():
    """Five wrong pixels in a cross of a 3 x 3 image: the centre has 1 - 1/2, four edges 3/5 - ... below 1/2."""
    code = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.int16)[None, None]
    pair = replace(blob_pair((1, 1, 3, 3), torch.float64), p=torch.zeros(1, 1, 3, 3).double(), code=code)
    close(erosion(pair, steps=1, norm="none"), torch.tensor([[0.5]]), 1e-14)
    close(erosion(pair, steps=1, norm="double"), torch.tensor([[1.0]]), 1e-14)
    close(erosion(pair, steps=5, norm="minmax"), torch.tensor([[1.0]]), 1e-14)  # the second erosion leaves nothing


@pytest.mark.parametrize("shape", [(3, 1, 40, 41), (1, 1, 300, 200), (1, 1, 30, 31, 32)], ids=str)
def test_same_bits_for_any_number_of_threads(shape, threads):
    same_for_any_threads(erosion, blob_pair(shape))


@each_fast
def test_nan_is_seen(backend):
    pair = blob_pair((2, 1, 20, 20))
    pair.p[0, 0, 3, 4] = torch.nan
    value, grad = run(erosion, pair, backend)
    assert value[0].isnan() and value[1].isfinite()
    assert grad[0, 0, 3, 4].isnan() and grad[1].isfinite().all()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 2.0}, {"alpha": torch.inf}, {"norm": "max"}], ids=str)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="Try: "):
        erosion(blob_pair((1, 1, 4, 4)), **wrong)
