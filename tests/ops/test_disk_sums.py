"""Ball sums: the kernel against the reference, the reference against counting by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from compare import close
from hard_pairs import HARD, blob_pair, each_fast, matches_reference, pair_of, run, same_for_any_threads
from segfuse.ops.disk_sums import disk_sums

pytest.importorskip("segfuse._cpp")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", HARD)
def test_matches_reference(name, dtype):
    matches_reference(partial(disk_sums, radii=(1, 3)), pair_of(name, dtype))
    pair = pair_of(name, dtype, background=False)
    if pair.index:
        matches_reference(partial(disk_sums, radii=(2,), alpha=1.0, hard="argmax"), pair)


@pytest.mark.parametrize(
    ("shape", "radii"),
    [
        ((2, 1, 70), (3, 600)),
        ((2, 1, 45, 50), (3, 6, 9, 12, 15, 18)),
        ((1, 1, 60, 50), (2, 19)),  # more than 1023 pixels: counts of 64 bits
        ((1, 1, 14, 15, 16), (1, 2, 6)),
        ((1, 1, 14, 15, 16), (2, 7)),
        ((1, 1, 1, 16), (4,)),
        ((1, 1, 1, 1, 16), (4,)),
    ],
    ids=str,
)
def test_radii(shape, radii):
    matches_reference(partial(disk_sums, radii=radii), blob_pair(shape))


def test_by_hand():
    """An image of one pixel, then of nine, all wrong: radius 1 holds five, and fewer inside the image at its rim."""
    pair = replace(
        blob_pair((1, 1, 1, 1), torch.float64),
        p=torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64),
        code=torch.zeros((1, 1, 1, 1), dtype=torch.int16),
    )
    assert disk_sums(pair, radii=(1,)) == 0
    wide = replace(
        pair, p=torch.full((1, 1, 3, 3), 0.9, dtype=torch.float64), code=torch.zeros((1, 1, 3, 3), dtype=torch.int16)
    )
    # w_f = 2 f(5/5) = 1 in the centre, 2 f(4/5) = 0.6 at an edge, 2 f(3/5) = 0.2 in a corner
    close(disk_sums(wide, radii=(1,)), 0.9**3 * (1 + 4 * 0.6 + 4 * 0.2) * torch.ones(1, 1).double(), 1e-14)


def test_gradcheck_of_its_reference():
    """The weights are constants: only away from p = 1/2 is the value differentiable."""
    pair = pair_of("multilabel", torch.float64)
    pair = replace(pair, p=pair.p.clone().requires_grad_())
    op = lambda p: disk_sums(replace(pair, p=p), radii=(1, 2))  # noqa: E731
    assert torch.autograd.gradcheck(op, pair.p)


@pytest.mark.parametrize("shape", [(3, 1, 40, 41), (1, 1, 300, 200), (1, 1, 20, 21, 22)], ids=str)
def test_same_bits_for_any_number_of_threads(shape, threads):
    same_for_any_threads(partial(disk_sums, radii=(2, 5)), blob_pair(shape))


@each_fast
def test_nan_is_seen(backend):
    pair = blob_pair((2, 1, 20, 20))
    pair.p[0, 0, 3, 4] = torch.nan
    value, grad = run(disk_sums, pair, backend)
    assert value[0].isnan() and value[1].isfinite()
    assert grad[0, 0, 3, 4].isnan() and grad[1].isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [{"radii": ()}, {"radii": (0,)}, {"radii": (1.5,)}, {"radii": (817,)}, {"radii": (1,) * 65}, {"radii": (10**12,)}]
    + [{"alpha": torch.nan}, {"hard": "argmax"}],
    ids=str,
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="Try: "):
        disk_sums(blob_pair((1, 1, 4, 4)), **wrong)


@pytest.mark.parametrize(("shape", "radius"), [((1, 1, 4, 4), 816), ((1, 1, 2, 3, 2), 79)], ids=str)
def test_the_largest_balls(shape, radius):
    pair = blob_pair(shape)
    assert disk_sums(pair, radii=(radius,)) == 0  # the image is less than half of them
    close(disk_sums(pair, radii=(2, radius)), disk_sums(pair, radii=(2,)), 1e-14)
