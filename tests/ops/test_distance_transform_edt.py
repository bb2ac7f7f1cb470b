"""Distances against SciPy, against every pair of pixels, and every backend against the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import segfuse
from cases import LABELS
from compare import same
from segfuse import distance_transform_edt as edt
from segfuse.backends import available, use_backend
from segfuse.ops.distance_transform_edt import INTEGERS, MASK_MODES, MODES

FAST = [name for name in available("distance_transform_edt") if name != "reference"]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}  # relative, of every single distance
SPACING = (1.5, 0.7, 2.3)


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)  # the reference reduces many small tensors


@pytest.fixture(params=available("distance_transform_edt"))
def backend(request):
    with use_backend(request.param):
        yield request.param


@pytest.fixture(params=FAST or ["reference"])
def fast(request):
    with use_backend(request.param):
        yield request.param


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def blobs(seed: int, *shape: int) -> Tensor:
    """Smooth random regions."""
    ndimage = pytest.importorskip("scipy.ndimage")
    return torch.from_numpy(ndimage.gaussian_filter(random(seed, *shape).numpy(), 2.5)) > 0.5


def grid(*shape: int) -> Tensor:
    return torch.stack(torch.meshgrid(*[torch.arange(side) for side in shape], indexing="ij"))


def one(*shape: int, at: float = 0.3) -> Tensor:
    """A single background pixel."""
    mask = torch.ones(shape, dtype=torch.bool)
    mask[tuple(int(at * side) for side in shape)] = False
    return mask


MASKS = {
    "random": lambda *s: random(1, *s) < 0.5,
    "dense": lambda *s: random(2, *s) < 0.97,
    "sparse": lambda *s: random(3, *s) < 0.999,
    "thin": lambda *s: random(4, *s) < 0.03,
    "blob": lambda *s: blobs(5, *s),
    "one": one,
    "corner": lambda *s: one(*s, at=0.0),
    "checkerboard": lambda *s: grid(*s).sum(0) % 2 == 0,
    "full row": lambda *s: grid(*s)[0] != s[0] // 2,
    "full column": lambda *s: grid(*s)[-1] != s[-1] - 1,
    "diagonal": lambda *s: (grid(*s).double() / torch.tensor(s).reshape(-1, *(1,) * len(s))).std(0, False) > 0.01,
    "ring": lambda *s: ((grid(*s) - torch.tensor(s).reshape(-1, *(1,) * len(s)) / 2) ** 2).sum(0) < (min(s) / 2) ** 2,
    "parabola": lambda *s: grid(*s)[-1] != grid(*s)[0] ** 2 // max(s),
    "comb": lambda *s: (grid(*s)[0] % 7 != 0) | (grid(*s)[-1] % 5 != 0),
    "empty": lambda *s: torch.zeros(s, dtype=torch.bool),
    "full": lambda *s: torch.ones(s, dtype=torch.bool),
}
SHAPES = [(1,), (2,), (33,), (1, 1), (3, 2), (1, 40), (40, 1), (31, 32), (33, 127), (127, 33), (16, 64), (5, 200)]
SHAPES += [(200, 5), (1, 1, 9), (9, 1, 5), (1, 7, 8), (2, 3, 33), (33, 3, 2), (3, 33, 2), (13, 17, 19), (31, 5, 65)]


def scipy_edt(mask: Tensor, spacing: tuple[float, ...] | None = None) -> Tensor:
    """SciPy's distances in float64, 0 without a background."""
    ndimage = pytest.importorskip("scipy.ndimage")
    if mask.all():
        return torch.zeros(mask.shape, dtype=torch.float64)
    return torch.from_numpy(ndimage.distance_transform_edt(mask.numpy(), sampling=spacing))


def two_sided(mask: Tensor, spacing: tuple[float, ...] | None = None) -> Tensor:
    if mask.all() or not mask.any():
        return torch.zeros(mask.shape, dtype=torch.float64)
    return scipy_edt(mask, spacing) + scipy_edt(~mask, spacing)


def agree(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=0, equal_nan=False)


def implied(indices: Tensor, spacing: tuple[float, ...] | None = None) -> Tensor:
    """Distances from every pixel of ``(axes, N, *spatial)`` to the one that the indices name."""
    axes, spatial = indices.shape[0], indices.shape[-indices.shape[0] :]
    own = grid(*spatial).reshape(axes, *(1,) * (indices.ndim - axes - 1), *spatial)
    size = torch.tensor(spacing or (1.0,) * axes, dtype=torch.float64).reshape(-1, *(1,) * (indices.ndim - 1))
    return (((indices - own) * size) ** 2).sum(0).sqrt()


# ------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_equals_scipy(fast, name, shape):
    mask = MASKS[name](*shape)
    expected, both = scipy_edt(mask), two_sided(mask)
    squares = (expected**2).round()
    assert same(edt(mask[None], squared=True)[0].double(), squares)
    assert same(edt(mask[None])[0], squares.sqrt().float())  # rounded once
    assert same(edt(mask[None], squared=True, dtype=torch.float64)[0], squares)
    assert same(edt(mask[None], mode="two_sided", squared=True)[0].double(), (both**2).round())
    assert same(edt(mask[None], mode="labels", squared=True)[0].double(), (both**2).round())
    assert same(edt(mask[None], mode="signed")[0], torch.where(mask, -both, both).float())
    spacing = SPACING[: len(shape)]
    expected, both = scipy_edt(mask, spacing), two_sided(mask, spacing)
    for dtype, tolerance in TOLERANCE.items():
        agree(edt(mask[None], spacing=spacing, dtype=dtype)[0], expected, tolerance)
        agree(edt(mask[None], spacing=spacing, mode="two_sided", dtype=dtype)[0], both, tolerance)


@pytest.mark.parametrize(
    "shape", [(1023, 1024), (1025, 31), (1200, 1200), (2, 2048), (2048, 3), (7, 1025, 2), (2, 9, 1024)], ids=str
)
@pytest.mark.parametrize("name", ["blob", "sparse", "corner", "thin", "parabola", "diagonal"])
def test_long_sides(fast, name, shape):
    mask = MASKS[name](*shape)
    assert same(edt(mask[None], squared=True)[0].double(), (scipy_edt(mask) ** 2).round())
    assert same(edt(mask[None], mode="two_sided", squared=True)[0].double(), (two_sided(mask) ** 2).round())


@pytest.mark.parametrize("name", ["one", "corner", "sparse"])
@pytest.mark.parametrize("shape", [(5000,), (4200, 40), (40, 4200), (6000, 3), (2, 33000)], ids=str)
def test_squares_beyond_float(fast, name, shape):
    """4095^2 is the last square that float32 holds with all those below it."""
    mask = MASKS[name](*shape)
    squares = (scipy_edt(mask) ** 2).round()
    assert same(edt(mask[None], squared=True, dtype=torch.float64)[0], squares)
    assert same(edt(mask[None], squared=True)[0], squares.float())
    assert same(edt(mask[None])[0], squares.sqrt().float())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spacing", [None, SPACING], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("shape", [(2, 7), (1, 6, 9), (2, 9, 1), (1, 4, 5, 6)], ids=str)
def test_definition(backend, shape, spacing, mode):
    """Every pair of pixels."""
    spatial = shape[1:]
    spacing = None if spacing is None else spacing[: len(spatial)]
    for seed, density in ((1, 0.1), (2, 0.5), (3, 1.0), (4, 0.0)):
        labels = (random(seed, *shape) * 4).long() * (random(seed + 9, *shape) < density)
        points = grid(*spatial).flatten(1).T * torch.tensor(spacing or (1.0,) * len(spatial), dtype=torch.float64)
        apart = (points[:, None] - points[None]).norm(dim=-1)
        for x, found in zip(labels, zip(*_tensors(edt(labels, mode=mode, spacing=spacing)))):
            x = x.flatten()
            if mode == "nearest_two":
                each = [apart[:, x == label].amin(1) for label in x.unique() if label > 0]
                none = torch.full_like(apart[0], torch.inf)
                expected = torch.stack([*each, none, none]).sort(0).values[:2]
            else:
                kind = x if mode == "labels" else (x != 0).long()
                other = kind[:, None] != kind[None]
                d = torch.where(other, apart, torch.inf).amin(1)
                d = torch.where(d.isinf() | ((mode == "inside") & (kind == 0)), 0, d)
                expected = (torch.where(kind == 1, -d, d) if mode == "signed" else d)[None]
            agree(torch.stack(found).flatten(1), expected)


def _tensors(x: Any) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_matches_reference(mode, data):
    side = st.one_of(st.integers(0, 6), st.sampled_from([15, 16, 17, 33, 65]))
    shape = data.draw(st.lists(side, min_size=2, max_size=4).filter(lambda s: torch.Size(s).numel() < 3000))
    seed, density = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
    size = st.sampled_from([1.0, 0.5, 3.0, 1e-3, 100.0])
    spacing = data.draw(st.one_of(st.none(), st.tuples(*[size] * (len(shape) - 1))))
    classes = data.draw(st.sampled_from([None, (), (0,), (2, 0, 5)])) if mode in MASK_MODES else None
    labels = (random(seed, *shape) * 4).long() * (random(seed + 1, *shape) < density)
    axes = data.draw(st.permutations(range(1, len(shape))))
    labels = labels.permute(0, *axes).contiguous().permute(0, *[axes.index(i) + 1 for i in range(1, len(shape))])
    call = {"mode": mode, "spacing": spacing, "classes": classes, "dtype": data.draw(st.sampled_from([*TOLERANCE]))}
    indices = mode != "nearest_two" and data.draw(st.booleans())
    with use_backend("reference"):
        expected = _tensors(edt(labels, **call))
    for name in FAST:
        with use_backend(name):
            found = _tensors(edt(labels, **call, return_indices=indices))
        agree(found[0], expected[0], TOLERANCE[call["dtype"]])
        if mode == "nearest_two":
            agree(found[1], expected[1], TOLERANCE[call["dtype"]])
        elif indices and labels.numel():
            torch.testing.assert_close(implied(found[1], spacing), found[0].abs().double(), rtol=1e-6, atol=0)
            agree(found[0], edt(labels, **call), TOLERANCE[call["dtype"]])  # without indices short axes are left out


@pytest.mark.parametrize("mode", MODES[:4])
def test_indices_lead_where_they_say(backend, mode):
    labels = (blobs(3, 2, 20, 18, 17).long() + (random(1, 2, 20, 18, 17) < 0.01)) * torch.tensor([1, 0])[
        :, None, None, None
    ]
    distance, indices = edt(labels, mode=mode, return_indices=True, spacing=SPACING)
    assert indices.dtype == torch.int32 and indices.shape == (3, *labels.shape)
    agree(implied(indices, SPACING), distance.abs())
    z, y, x = indices[:, 0].long()
    there = labels[0][z, y, x]
    if mode == "inside":
        assert (there == 0).all()
    elif mode == "labels":
        assert (there != labels[0]).all()
    else:
        assert ((there != 0) != (labels[0] != 0)).all()
    assert same(indices[:, 1].long(), grid(*labels.shape[1:]))  # one label: no distance, the pixel itself


@pytest.mark.parametrize("mode", MODES[:4])
@pytest.mark.parametrize("spacing", [None, (1.5, 0.7)], ids=["isotropic", "anisotropic"])
def test_long_columns(fast, spacing, mode):
    """Longer than any tile of a kernel."""
    labels = ((random(1, 1, 6000, 3) < 0.01) + (random(2, 1, 6000, 3) < 0.001).long()).to(torch.int16)
    distance, indices = edt(labels, mode=mode, spacing=spacing, return_indices=True)
    with use_backend("reference"):
        expected = edt(labels.mT.contiguous(), mode=mode, spacing=spacing and spacing[::-1]).mT  # far fewer steps
    agree(distance, expected)
    agree(edt(labels, mode=mode, spacing=spacing, dtype=torch.float64), expected)
    agree(implied(indices, spacing), distance.abs())


def test_many_classes(fast):
    labels = (random(1, 2, 7, 33) * 300).to(torch.int16)
    classes = tuple(range(-1, 299))
    expected = torch.cat([edt(labels == c, mode="signed")[:, None] for c in classes], 1)
    assert same(edt(labels, mode="signed", classes=classes), expected)


@pytest.mark.parametrize("ratio", [1e-3, 1e-6, 1e-12, 1e-30])
def test_uneven_spacing(fast, ratio):
    mask = MASKS["dense"](30, 40)
    for spacing in ((1.0, ratio), (ratio, 1.0), (3 * ratio, ratio)):
        expected = scipy_edt(mask, spacing)
        agree(edt(mask[None], spacing=spacing, dtype=torch.float64)[0], expected, 1e-12)
        agree(edt(mask[None], spacing=spacing)[0], expected.float(), 1e-6)


def test_spacing_is_a_unit(fast):
    mask = MASKS["blob"](2, 30, 31)
    assert same(edt(mask, spacing=0.5), edt(mask) * 0.5)
    assert same(edt(mask, spacing=(0.25, 0.25), squared=True), edt(mask, squared=True) / 16)


# ------------------------------------------------------------------------------------------- what goes in


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_integers(backend, mode, dtype):
    top = 1 if dtype == torch.bool else torch.iinfo(dtype).max
    labels = (random(1, 2, 9, 21) < 0.1).long()
    if top > 1:
        labels = labels + 2 * (random(2, 2, 9, 21) < 0.1)
    big = labels.clone()
    big[labels == 1] = top if dtype != torch.uint64 else -1  # 2^64 - 1 has the bits of -1
    for a, b in zip(_tensors(edt(big.to(dtype), mode=mode)), _tensors(edt(labels, mode=mode))):
        assert same(a, b)
    if mode in MASK_MODES:
        classes = (0, 1, 2, 300, -1, -(2**63))
        expected = torch.cat([edt((labels == c).to(torch.int8), mode=mode)[:, None] for c in classes], 1)
        assert same(edt(labels.to(dtype), mode=mode, classes=classes), expected)


@pytest.mark.parametrize("dtype", [d for d in LABELS if d.is_floating_point], ids=str)
@pytest.mark.parametrize("mode", MASK_MODES)
def test_threshold(backend, mode, dtype):
    p = random(1, 2, 9, 33).to(dtype)
    p[0, 3], p[1, 4, 5:9], p[0, 0, 0] = torch.nan, torch.inf, -torch.inf
    for t in (0.5, 0.1, float(p[1, 2, 3]), -torch.inf, torch.inf, 1e300):
        expected = edt(p > t, mode=mode)
        assert same(edt(p, mode=mode, threshold=t), expected), t
        assert same(edt(p.mT.contiguous().mT, mode=mode, threshold=t), expected)


LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "stepped": lambda x: x.repeat_interleave(3, -1).repeat_interleave(2, 0)[::2, ..., ::3],
    "offset": lambda x: torch.cat([x[..., :1], x], -1)[..., 1:],
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "flipped batch": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_any_strides_and_leading_axes(backend, mode, layout):
    labels = (random(1, 2, 3, 2, 11, 19) * 3).to(torch.uint8)
    flat = _tensors(edt(labels.flatten(0, 2), mode=mode))
    strided = LAYOUTS[layout](labels)
    assert not strided.is_contiguous()
    before = strided.clone()
    for a, b in zip(_tensors(edt(strided, mode=mode, spatial_dims=2)), flat):
        assert a.is_contiguous() and same(a.flatten(0, 2), b)
    assert same(strided, before)
    expanded = labels[:1, :1, :1].expand(2, 3, 2, 11, 19)
    for a in _tensors(edt(expanded, mode=mode, spatial_dims=2)):
        assert same(a, a[:1, :1, :1].expand(a.shape))
    single = edt(labels[0, 0, 0], mode=mode, spatial_dims=2)
    for a, b in zip(_tensors(single), flat):
        assert same(a, b[0])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 4, 4), (2, 0, 4), (2, 4, 0), (1, 2, 0, 3)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_no_pixels(backend, mode, shape):
    for d in _tensors(edt(torch.zeros(shape, dtype=torch.long), mode=mode)):
        assert d.shape == shape
    if mode in MASK_MODES:
        d, indices = edt(torch.zeros(shape, dtype=torch.long), mode=mode, classes=(1, 2, 3), return_indices=True)
        assert d.shape == (shape[0], 3, *shape[1:]) and indices.shape == (len(shape) - 1, *d.shape)


def test_nearest_two_without_two(backend):
    labels = torch.zeros(3, 4, 20, dtype=torch.int16)
    labels[1, 2, 3] = 7
    labels[2, 2, 3], labels[2, 0, 19] = 7, -5  # not an instance
    first, second = edt(labels, mode="nearest_two")
    assert first[0].isinf().all() and second.isinf().all()
    agree(first[1], scipy_edt(labels[1] != 7))
    assert same(first[1], first[2])


# ------------------------------------------------------------------------------------------- how it runs


@pytest.mark.parametrize("mode", MODES)
def test_threads_leave_the_bits_alone(fast, mode):
    for shape in ((40, 30, 34), (2, 200, 130), (1, 24, 33, 70), (3, 20000)):
        labels = (random(1, *shape) * 3).to(torch.uint8) * (random(2, *shape) < 0.02)
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(_tensors(edt(labels, mode=mode, spacing=SPACING[: len(shape) - 1])))
        assert all(same(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_carries_no_gradient(backend):
    x = torch.rand(2, 5, 6, requires_grad=True)
    assert not edt(x, threshold=0.5).requires_grad


def test_samples_do_not_see_each_other(backend):
    masks = torch.stack([MASKS[name](12, 40) for name in MASKS])
    for mode in MODES:
        together = _tensors(edt(masks, mode=mode))
        for i, mask in enumerate(masks):
            for a, b in zip(together, _tensors(edt(mask[None], mode=mode))):
                assert same(a[i], b[0])


def test_memory():
    """The output and less than a quarter of it again."""
    code = """
import re, torch, segfuse
torch.set_num_threads(2)
x = torch.ones(1, 100, 300, 400, dtype=torch.uint8)
x.view(-1)[::997] = 0
segfuse.distance_transform_edt(x[:, :4])
kib = lambda name: int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")  # VmHWM, the peak, starts anew
before = kib("VmRSS")
d = segfuse.distance_transform_edt(x, mode="two_sided")
print((kib("VmHWM") - before) * 1024 / d.nbytes)
"""
    if not sys.platform.startswith("linux") or not FAST:
        pytest.skip("measured on Linux, of the extension")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) < 1.25


@pytest.mark.skipif("SEGFUSE_ISA" in os.environ, reason="one is forced already")
@pytest.mark.parametrize("isa", segfuse._cpp.isa_info()["found"] if FAST else [])
def test_every_instruction_set(isa):
    if isa == segfuse._cpp.isa_info()["used"]:
        return  # this process has just done it
    chosen = "(test_equals_scipy and (blob or sparse or comb)) or test_matches_reference or test_integers"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
    done = subprocess.run(command, env={**os.environ, "SEGFUSE_ISA": isa}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


# ------------------------------------------------------------------------------------------- errors

MASK = torch.ones(2, 4, 5, dtype=torch.bool)
ERRORS: dict[str, tuple[Any, dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "no tensor": ([[1]], {}, TypeError, ("list", "torch.as_tensor")),
    "sparse": (MASK.float().to_sparse(), {}, TypeError, ("sparse", "to_dense")),
    "float": (MASK.float(), {}, TypeError, ("float32", "threshold=0.5")),
    "half labels": (MASK.half(), {"mode": "labels"}, TypeError, ("float16", "labels.long()")),
    "complex": (MASK.to(torch.complex64), {}, TypeError, ("complex64", "input != 0")),
    "threshold of integers": (MASK, {"threshold": 0.5}, TypeError, ("bool", "input > 0.5")),
    "threshold is no number": (MASK.float(), {"threshold": "a"}, TypeError, ("'a'", "threshold=0.5")),
    "threshold is NaN": (MASK.float(), {"threshold": float("nan")}, ValueError, ("nan", "threshold=0.5")),
    "mode": (MASK, {"mode": "outside"}, ValueError, ("'outside'", "two_sided", "inside")),
    "no batch": (MASK[0, 0], {}, ValueError, ("(5,)", "spatial_dims")),
    "four spatial axes": (MASK[None, None], {}, ValueError, ("(1, 1, 2, 4, 5)", "spatial_dims=2")),
    "spatial_dims": (MASK, {"spatial_dims": 4}, ValueError, ("got 4", "spatial_dims=2")),
    "spatial_dims is no int": (MASK, {"spatial_dims": True}, ValueError, ("got True", "spatial_dims=2")),
    "too few axes": (MASK[0], {"spatial_dims": 3}, ValueError, ("(4, 5)", "spatial_dims=2")),
    "spacing of another length": (MASK, {"spacing": (1, 1, 1)}, ValueError, ("2 spatial axes", "got 3", "(1.0, 1.0)")),
    "spacing of 0": (MASK, {"spacing": (1, 0)}, ValueError, ("> 0", "(1.0, 0.0)")),
    "spacing is infinite": (MASK, {"spacing": (1, float("inf"))}, ValueError, ("finite", "inf")),
    "spacing is NaN": (MASK, {"spacing": float("nan")}, ValueError, ("finite", "nan")),
    "spacing out of range": (MASK, {"spacing": (1e-200, 1)}, ValueError, ("1e+100", "1e-200")),
    "spacing is no number": (MASK, {"spacing": ("a", 1)}, TypeError, ("'a'", "spacing=(1.0, 0.5)")),
    "spacing is text": (MASK, {"spacing": "12"}, TypeError, ("'12'", "spacing=(1.0, 0.5)")),
    "classes with labels": (MASK, {"mode": "labels", "classes": (1,)}, ValueError, ("labels", "(1,)", "classes=None")),
    "classes of floats": (MASK, {"classes": (1.5,)}, TypeError, ("1.5", "classes=(0, 1, 2)")),
    "classes too large": (MASK, {"classes": (2**63,)}, TypeError, ("9223372036854775808", "classes=(0, 1, 2)")),
    "classes and threshold": (MASK.float(), {"threshold": 0, "classes": (1,)}, TypeError, ("float32", "classes=None")),
    "indices of two": (MASK, {"mode": "nearest_two", "return_indices": True}, ValueError, ("return_indices=False",)),
    "half distances": (MASK, {"dtype": torch.float16}, TypeError, ("float16", "dtype=torch.float32")),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    input, options, error, texts = ERRORS[name]
    with pytest.raises(error) as raised:
        edt(input, **options)
    assert all(text in str(raised.value) for text in (*texts, "Try:")), raised.value


def test_a_sample_without_what_is_measured_to_points_to_itself(backend):
    """Between others that have it."""
    x = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1]]).reshape(2, 2, 1, 4, 1)
    d, index = edt(x, spatial_dims=3, mode="two_sided", spacing=(0.001, 0.5, 0.5), return_indices=True)
    assert not d[1, 0].any()
    assert index[:, 1, 0].flatten().tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0]
