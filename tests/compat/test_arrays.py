"""``segfuse.compat.scipy`` and ``segfuse.compat.edt`` against SciPy and the edt package."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch

from segfuse.compat import edt as our_edt
from segfuse.compat import scipy as our_scipy

SHAPES = [(7,), (9, 11), (5, 6, 7), (1, 8), (3, 1, 4)]
NAMES = ("edt", "edtsq", "sdf", "sdfsq")


def masks(shape):
    r = np.random.default_rng(0)
    return [r.random(shape) < p for p in (0, 0.3, 0.9, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float32, ">i4"], ids=str)
def test_scipy(shape, dtype):
    ndimage = pytest.importorskip("scipy.ndimage")
    spacings = (None, 1.5, tuple(np.random.default_rng(1).random(len(shape)) + 0.5))
    for mask, spacing in itertools.product(masks(shape), spacings):
        x = mask.astype(dtype)
        expected, there = ndimage.distance_transform_edt(x, spacing, return_indices=True)
        found, indices = our_scipy.distance_transform_edt(x, spacing, return_indices=True)
        np.testing.assert_allclose(found, expected)
        assert (found.dtype, indices.dtype, indices.shape) == (expected.dtype, there.dtype, there.shape)
        if not mask.all():  # the index of a pixel as near as SciPy's
            at = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
            size = np.reshape([1.0] * len(shape) if spacing is None else np.broadcast_to(spacing, len(shape)), (-1,))
            apart = ((at - indices) * size.reshape(-1, *[1] * len(shape))) ** 2
            np.testing.assert_allclose(np.sqrt(apart.sum(0)), expected, atol=1e-12)
            assert not x[tuple(indices)].any()
        else:
            np.testing.assert_array_equal(indices, there)
        out, where = np.zeros(shape), np.zeros((len(shape), *shape), np.int32)
        call = {"return_indices": True, "distances": out, "indices": where}
        assert our_scipy.distance_transform_edt(x, spacing, **call) is None
        np.testing.assert_array_equal(out, found)
        np.testing.assert_array_equal(where, indices)


def test_scipy_tensors_and_lists():
    x = torch.tensor([[1, 1, 0], [1, 1, 1]])
    found = our_scipy.distance_transform_edt(x)
    assert isinstance(found, torch.Tensor) and found.dtype == torch.float64
    np.testing.assert_allclose(found, [[2, 1, 0], [5**0.5, 2**0.5, 1]])
    np.testing.assert_allclose(our_scipy.distance_transform_edt(x.tolist()), found)
    only = our_scipy.distance_transform_edt(x, return_distances=False, return_indices=True)
    assert only.shape == (2, 2, 3) and only.dtype == torch.int32


def test_scipy_errors():
    ndimage = pytest.importorskip("scipy.ndimage")
    functions = (ndimage.distance_transform_edt, our_scipy.distance_transform_edt)
    names = [[(p.name, p.default) for p in inspect.signature(f).parameters.values()] for f in functions]
    assert names[0] == names[1]
    x = np.eye(3)
    for options in (
        {"return_distances": False},
        {"distances": np.zeros((2, 3))},
        {"distances": np.zeros((3, 3), np.float32)},
        {"indices": np.zeros((2, 3, 3), np.int32)},
        {"return_indices": True, "indices": np.zeros((2, 3, 3), np.int64)},
        {"sampling": (1.0, 2.0, 3.0)},
    ):
        for f in (ndimage.distance_transform_edt, our_scipy.distance_transform_edt):
            with pytest.raises(RuntimeError):
                f(x, **options)
    with pytest.raises(ValueError, match="one to three axes"):
        our_scipy.distance_transform_edt(np.ones((2, 2, 2, 2)))


DTYPES = (bool, np.uint8, np.int8, np.int16, np.uint16, np.uint32, np.int64, np.uint64, np.float32, np.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_edt(shape, dtype):
    package = pytest.importorskip("edt")
    r = np.random.default_rng(2)
    for mask, spacing, border in itertools.product(
        masks(shape), (None, tuple(r.random(len(shape)) + 0.5)), (False, True)
    ):
        x = (r.integers(0, 3, shape) * mask).astype(dtype)
        anisotropy = spacing if len(shape) > 1 or spacing is None else spacing[0]
        for name, y in itertools.product(NAMES, (x, np.asfortranarray(x), np.ascontiguousarray(x[::-1])[::-1])):
            expected = getattr(package, name)(y, anisotropy=anisotropy, black_border=border)
            found = getattr(our_edt, name)(y, anisotropy=anisotropy, black_border=border)
            assert found.dtype == expected.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_edt_signatures_and_errors():
    package = pytest.importorskip("edt")
    for name in NAMES:
        theirs, ours = (inspect.signature(getattr(m, name)) for m in (package, our_edt))
        assert list(theirs.parameters) == list(ours.parameters)
    for m in (package, our_edt):
        with pytest.raises(TypeError):
            m.edt(np.ones((2, 2, 2, 2)))


def test_edt_by_hand():
    x = np.array([[0, 1, 1, 2, 2, 2, 0, 0]], np.uint8)
    np.testing.assert_array_equal(our_edt.edt(x), [[0, 1, 1, 1, 2, 1, 0, 0]])
    np.testing.assert_array_equal(our_edt.edtsq(x), [[0, 1, 1, 1, 4, 1, 0, 0]])
    np.testing.assert_array_equal(our_edt.sdf(x), [[-1, 1, 1, 1, 2, 1, -1, -2]])
    np.testing.assert_array_equal(our_edt.edt(x, black_border=True), [[0, 1, 1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(our_edt.edt(x, anisotropy=(1, 2.5)), [[0, 2.5, 2.5, 2.5, 5, 2.5, 0, 0]])
    assert np.isposinf(our_edt.edt(np.ones((2, 2)))).all() and np.isneginf(our_edt.sdf(np.zeros((2, 2)))).all()
    assert isinstance(our_edt.edt(torch.from_numpy(x)), torch.Tensor)
    with pytest.raises(NotImplementedError, match="voxel_graph"):
        our_edt.edt(x, voxel_graph=x)
