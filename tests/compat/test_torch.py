"""``segfuse.compat.torch`` against torch."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from against import Data, agree, both_raise, same_signature

from segfuse.compat import torch as ours

pytestmark = pytest.mark.filterwarnings("ignore")

D = Data()
IGNORED = torch.where(D.ignored == 255, -100, D.ignored)
WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


def compare(name, options, x, *rest, tol=1e-9):
    try:
        agree(getattr(torch.nn, name)(**options), getattr(ours, name)(**options), x, *rest, tol=tol)
    except AssertionError as error:
        raise AssertionError(f"{name}({options}): {error}") from None


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "BCEWithLogitsLoss"])
def test_classes(name):
    same_signature(getattr(torch.nn, name), getattr(ours, name))
    options = {"weight": WEIGHT}
    a, b = getattr(torch.nn, name)(**options), getattr(ours, name)(**options)
    assert list(a.state_dict()) == list(b.state_dict())
    assert isinstance(b, getattr(torch.nn, name))


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy_with_logits"])
def test_functions(name):
    same_signature(getattr(F, name), getattr(ours, name))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(reduction, smoothing):
    for weight, y in itertools.product((None, WEIGHT), (D.labels, IGNORED, D.hot, D.shares)):
        compare("CrossEntropyLoss", {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}, D.x, y)
    options = {"weight": WEIGHT, "reduction": reduction, "label_smoothing": smoothing}
    compare("CrossEntropyLoss", {**options, "ignore_index": 1}, D.x, D.labels)
    compare("CrossEntropyLoss", options, D.x[:, :, 0, 0], D.labels[:, 0, 0])
    compare("CrossEntropyLoss", options, D.x[0, :, 0, 0], D.labels[0, 0, 0])
    compare("CrossEntropyLoss", options, D.x.movedim(1, -1).contiguous().movedim(-1, 1), D.labels)
    compare("CrossEntropyLoss", {"reduction": reduction}, D.x1, torch.zeros_like(D.labels))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_cross_entropy(reduction):
    r = torch.Generator().manual_seed(0)
    pos_weights = [None, torch.tensor([2.0]), *(torch.rand(s, generator=r) for s in ((3, 1, 1), (1, 3, 1, 1), (7,)))]
    for pos_weight, weight, y in itertools.product(pos_weights, (None, torch.rand((3, 1, 1))), (D.hot, D.soft)):
        options = {"weight": weight, "pos_weight": pos_weight, "reduction": reduction}
        compare("BCEWithLogitsLoss", options, D.x, y, tol=1e-6)
    compare("BCEWithLogitsLoss", {"reduction": reduction}, D.x[0, 0, 0], D.soft[0, 0, 0])
    compare("BCEWithLogitsLoss", {"reduction": reduction}, D.x.transpose(1, 3), D.soft.transpose(1, 3))
    compare("BCEWithLogitsLoss", {"reduction": reduction}, D.x, 3 * D.soft - 1)
    compare("BCEWithLogitsLoss", {"reduction": reduction}, D.x1, D.mask)


def test_deprecated_options():
    for size_average, reduce in itertools.product((None, True, False), repeat=2):
        options = {"size_average": size_average, "reduce": reduce}
        compare("CrossEntropyLoss", options, D.x, D.labels)
        compare("BCEWithLogitsLoss", options, D.x, D.soft)


def test_nothing_but_ignored_pixels():
    """NaN, as torch documents it."""
    y = torch.full_like(D.labels, -100)
    assert ours.cross_entropy(D.x, y).isnan() and F.cross_entropy(D.x, y).isnan()
    assert ours.cross_entropy(D.x, y, reduction="sum") == 0


def test_errors():
    both_raise(lambda: F.cross_entropy(D.x, D.labels[:1]), lambda: ours.cross_entropy(D.x, D.labels[:1]))
    both_raise(
        lambda: F.cross_entropy(D.x, D.labels, WEIGHT[:2]), lambda: ours.cross_entropy(D.x, D.labels, WEIGHT[:2])
    )
    with pytest.raises(ValueError, match=r"must be the same"):
        ours.binary_cross_entropy_with_logits(D.x, D.soft[:1])
