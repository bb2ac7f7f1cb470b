"""local_moments: against a sum over the window written out, its gradient, and what it must refuse."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import segfuse as sf
from cases import lay_out
from compare import close, same, within_rounding
from segfuse.backends import available
from segfuse.ops.local_moments import make_window

CASES = {  # shape, settings
    "odd_2d": ((2, 3, 16, 17), {"window": 3}),
    "default": ((2, 1, 13, 29), {}),
    "valid": ((1, 2, 14, 19), {"window": 5, "padding": "valid"}),
    "exact_fit": ((1, 1, 7, 7), {"window": 7, "padding": "valid"}),
    "3d": ((1, 2, 7, 9, 11), {"window": 5, "sigma": 0.8}),
    "3d_valid": ((2, 1, 12, 40, 13), {"window": 11, "padding": "valid"}),
    "1d": ((3, 2, 50), {"window": 9}),
    "per_axis": ((1, 1, 9, 10, 12), {"window": (1, 3, 7), "sigma": (1.0, 0.5, 2.0)}),
    "box": ((2, 2, 10, 12), {"window": 7, "kernel": "box"}),
    "larger_than_image": ((1, 2, 3, 5), {"window": 13}),
    "33": ((1, 1, 40, 37), {"window": 33, "sigma": 6.0}),
    "65": ((1, 1, 30, 70), {"window": 65, "sigma": 15.0}),
    "65_3d": ((1, 1, 4, 5, 9), {"window": 65, "sigma": 9.0}),
    "33_3d": ((1, 2, 20, 9, 12), {"window": (33, 9, 17), "sigma": 4.0, "kernel": "box"}),
    "one_pixel": ((2, 1, 1, 1), {"window": 3}),
    "one_wide": ((1, 2, 9, 1), {"window": 3}),
    "one_wide_3d": ((1, 2, 1, 9, 1), {"window": 5}),
    "several_boxes": ((1, 1, 150, 600), {"window": 3}),
    "several_boxes_3d": ((1, 1, 70, 40, 9), {"window": 7}),
    "empty_batch": ((0, 2, 5, 6), {"window": 3}),
    "no_pixels": ((2, 1, 0, 6), {"window": 3}),
    "no_pixels_valid": ((2, 1, 0, 6), {"window": 5, "padding": "valid"}),
}
backends = pytest.mark.parametrize("backend", available("local_moments"))


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(shape, generator=random, dtype=torch.float64) for _ in range(2))
    return a.to(dtype), (0.5 * a + b).to(dtype)


def written_out(a: Tensor, b: Tensor, size: int, sigma: float) -> list[Tensor]:
    """The definition, term by term, zero padding."""
    r, axes = size // 2, a.ndim - 2
    g = [math.exp(-k * k / (2 * sigma**2)) for k in range(-r, r + 1)]
    pad = torch.nn.functional.pad
    ap, bp = pad(a, [r, r] * axes), pad(b, [r, r] * axes)

    def expectation(f):
        total = torch.zeros_like(a)
        for k in itertools.product(range(size), repeat=axes):
            where = tuple(slice(i, i + n) for i, n in zip(k, a.shape[2:]))
            total += math.prod(g[i] / sum(g) for i in k) * f(ap[(..., *where)], bp[(..., *where)])
        return total

    ma, mb = expectation(lambda a, b: a), expectation(lambda a, b: b)
    squares = [expectation(f) for f in (lambda a, b: a * a, lambda a, b: b * b, lambda a, b: a * b)]
    return [ma, squares[0] - ma * ma, mb, squares[1] - mb * mb, squares[2] - ma * mb]


def run(a: Tensor, b: Tensor, backend: str, **settings) -> list[Tensor]:
    """All moments, and the gradients by both images of a weighted sum of them."""
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    with sf.use_backend(backend):
        rows = sf.local_moments(a, b, **settings)
        random = torch.Generator().manual_seed(9)
        weights = [torch.randn(row.shape, generator=random, dtype=torch.float64).to(row.dtype) for row in rows]
        grads = torch.autograd.grad(rows, (a, b), weights)
    return [row.detach() for row in rows] + list(grads)


@backends
@pytest.mark.parametrize(("shape", "size", "sigma"), [((2, 1, 7, 9), 5, 1.5), ((1, 2, 5, 4, 6), 3, 0.7)])
def test_definition(backend, shape, size, sigma):
    a, b = images(shape)
    with sf.use_backend(backend):
        found = sf.local_moments(a, b, window=size, sigma=sigma)
    for row, expected in zip(found, written_out(a, b, size, sigma)):
        close(row, expected, 1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
@backends
def test_matches_reference(backend, case, dtype):
    shape, settings = CASES[case]
    a, b = images(shape, dtype)
    exact = run(a.double(), b.double(), "reference", **settings)
    plain, fast = run(a, b, "reference", **settings), run(a, b, backend, **settings)
    for e, p, f in zip(exact, plain, fast):
        assert f.dtype == p.dtype
        within_rounding(f, p, e, dtype)


@backends
def test_one_image(backend):
    a, b = images((2, 3, 9, 8))
    with sf.use_backend(backend):
        mean, var, *rest = sf.local_moments(a, window=5)
        pair = sf.local_moments(a, b, window=5)
    assert rest == [None, None, None]
    close(mean, pair.mean_a, 1e-15)
    close(var, pair.var_a, 1e-14)


@backends
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1.0, 1e-3, 12345.678])
@pytest.mark.parametrize("shape", [(1, 1, 9, 30), (1, 1, 8, 9, 10)])
def test_flat_windows_are_exact(backend, value, shape):
    """E[a^2] - mean^2 would leave 1e-7 of the square."""
    a = torch.full(shape, value)
    with sf.use_backend(backend):
        found = sf.local_moments(a, a.flip(-1), window=5, padding="valid")
    assert (found.mean_a == a.flatten()[0]).all()
    assert not found.var_a.any() and not found.var_b.any() and not found.cov.any()


@backends
def test_small_variance_on_a_large_mean(backend):
    a = 1000 + 1e-3 * images((1, 1, 20, 20))[0]
    a = a.float().double()
    with sf.use_backend(backend):
        close(sf.local_moments(a.float()).var_a[..., 5:-5, 5:-5], sf.local_moments(a).var_a[..., 5:-5, 5:-5], 0.05)


@backends
@pytest.mark.parametrize("padding", ["zeros", "valid"])
@pytest.mark.parametrize("shape", [(1, 2, 4, 5), (1, 1, 3, 4, 3)])
def test_gradcheck(backend, padding, shape):
    a, b = (x.requires_grad_() for x in images(shape))
    with sf.use_backend(backend):
        assert torch.autograd.gradcheck(lambda a, b: sf.local_moments(a, b, window=3, padding=padding), (a, b))
        assert torch.autograd.gradgradcheck(lambda a, b: sf.local_moments(a, b, window=3, padding=padding).cov, (a, b))
        assert torch.autograd.gradcheck(lambda a: sf.local_moments(a, window=3, padding=padding)[:2], (a,))


@pytest.mark.parametrize("backend", [name for name in available("local_moments") if name in ("cpp", "numba")])
@pytest.mark.parametrize("case", ["odd_2d", "3d_valid", "several_boxes", "several_boxes_3d", "33"])
def test_threads_change_nothing(threads, backend, case):
    shape, settings = CASES[case]
    a, b = images(shape, torch.float32)
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append(run(a, b, backend, **settings))
    assert all(same(x, y) for other in found[1:] for x, y in zip(found[0], other))


@backends
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "permuted", "stepped", "offset", "expanded"])
def test_layouts(backend, layout):
    a, b = images((2, 3, 8, 9), torch.float32)
    moved = lay_out(a, layout)
    expected = run(moved.contiguous(), b, backend, window=5)
    for x, y in zip(run(moved, lay_out(b, "permuted"), backend, window=5), expected):
        assert same(x.contiguous(), y.contiguous())


@backends
def test_nan_reaches_its_windows_and_no_others(backend):
    a, _ = images((1, 1, 9, 9))
    a[0, 0, 4, 4] = torch.nan
    with sf.use_backend(backend):
        mean, var, *_ = sf.local_moments(a, window=3)
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[3:6, 3:6] = True
    assert torch.equal(mean[0, 0].isnan(), expected) and torch.equal(var[0, 0].isnan(), expected)


@pytest.mark.parametrize("sigma", [1e-200, 1e-320])
def test_a_sigma_near_0_is_a_window_of_one_pixel(sigma):
    a, _ = images((1, 1, 8, 9))
    found, expected = sf.local_moments(a, window=5, sigma=sigma), sf.local_moments(a, window=1)
    assert same(found[0], expected[0]) and same(found[1], expected[1])


def test_large_windows_are_left_to_the_reference():
    a, b = images((1, 1, 80, 6))
    with sf.use_backend("reference"):
        expected = sf.local_moments(a, b, window=(71, 3), sigma=20.0)
    assert all(same(x, y) for x, y in zip(sf.local_moments(a, b, window=(71, 3), sigma=20.0), expected))


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"window": 4}, ("odd", "4", "window=11")),
        ({"window": 0}, ("odd", "0")),
        ({"window": -3}, ("odd", "-3")),
        ({"window": 3.0}, ("odd", "3.0")),
        ({"window": True}, ("odd", "True")),
        ({"window": (3, 3, 3)}, ("per spatial axis", "(3, 3, 3)")),
        ({"window": 11, "padding": "valid"}, ("11", "(8, 9)", "window=7")),
        ({"sigma": 0.0}, ("> 0", "0.0", "sigma=1.5")),
        ({"sigma": -1}, ("> 0", "-1")),
        ({"sigma": math.inf}, ("> 0", "inf")),
        ({"sigma": math.nan}, ("> 0", "nan")),
        ({"kernel": "disk"}, ("gaussian", "box", "'disk'")),
        ({"padding": "same"}, ("zeros", "valid", "'same'")),
    ],
)
def test_wrong_settings(settings, parts):
    with pytest.raises(ValueError) as error:
        sf.local_moments(torch.rand(1, 1, 8, 9), **settings)
    assert all(part in str(error.value) for part in (*parts, "Try: "))


@pytest.mark.parametrize(
    ("a", "b", "kind", "parts"),
    [
        (torch.rand(1, 1, 2, 2, 2, 2), None, ValueError, ("one to three", "(1, 1, 2, 2, 2, 2)")),
        (torch.rand(2, 2), None, ValueError, ("one to three", "(2, 2)")),
        (torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 5), ValueError, ("(1, 1, 4, 4)", "(1, 1, 4, 5)")),
        (torch.ones(1, 1, 4, 4, dtype=torch.int64), None, TypeError, ("int64", "a.float()")),
        (torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4).double(), TypeError, ("float32", "float64")),
        ([1.0], None, TypeError, ("list",)),
        (torch.rand(1, 1, 4, 4).to_sparse(), None, TypeError, ("sparse",)),
    ],
)
def test_wrong_images(a, b, kind, parts):
    with pytest.raises(kind) as error:
        sf.local_moments(a, b, window=3)
    assert all(part in str(error.value) for part in (*parts, "Try: "))


def test_weights_add_up_to_1():
    for size, sigma in ((3, 1.5), (11, 1.5), (33, 4.0)):
        (weights,) = make_window(size, sigma, "gaussian", "zeros", (40,)).weights
        assert abs(math.fsum(weights) - 1) < 1e-15 and weights == weights[::-1]
