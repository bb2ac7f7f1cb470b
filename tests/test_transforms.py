"""Maps for data loaders."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import segfuse as sf
from compare import close
from segfuse.transforms import DistanceMap, SignedDistanceMap, UNetWeightMap

Y = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]])
TRANSFORMS = [DistanceMap("label"), SignedDistanceMap("label", delta=0.5), UNetWeightMap("label", sigma=2.0)]


def test_values():
    close(DistanceMap()(Y), [[2.0, 1, 1, 2, 3]] * 2, 0)
    close(SignedDistanceMap()(Y), [[2.0, 1, 0, -1, -2]] * 2, 0)
    close(SignedDistanceMap(delta=0.25, spacing=(9, 0.5))(Y), [[1.0, 0.5, -0.25, -0.75, -1.25]] * 2, 1e-7)


def test_axes():
    """Leading axes are channels; class numbers get one channel per class."""
    assert DistanceMap()(Y[None]).shape == (1, 2, 5)
    assert DistanceMap(spatial_dims=3)(Y[None]).shape == (1, 2, 5)
    both = DistanceMap(num_classes=2)(Y)
    assert both.shape == (2, 2, 5)
    close(both[0], both[1], 0)
    close(both[1], DistanceMap()(Y), 0)
    assert DistanceMap(num_classes=3)(Y[None])[2].eq(0).all()


def test_unet_weight_map():
    two = torch.tensor([[1, 0, 0, 1, 0]])
    components, numbered = UNetWeightMap()(two), UNetWeightMap(instances=True)(torch.tensor([[3, 0, 0, 8, 0]]))
    close(components, numbered, 0)
    assert components[0, 1] > 0 and components[0, 0] == 0
    assert UNetWeightMap(only_background=False)(two)[0, 0] > 0
    touching = UNetWeightMap(instances=True)(torch.tensor([[1, 2, 0, 0]]))
    assert touching[0, 2] > 0 and not UNetWeightMap()(torch.tensor([[1, 1, 0, 0]])).any()


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_kinds_of_input(transform):
    """Tensors and arrays of any dtype, and dictionaries, which are not changed."""
    expected = transform(Y)
    for label in (Y.numpy(), Y.to(torch.uint8), Y.bool(), Y.float(), Y.numpy().astype(np.int16)):
        assert torch.equal(transform(label), expected)
    sample = {"image": 1, "label": Y}
    out = transform(sample)
    assert set(sample) == {"image", "label"} and out["image"] == 1 and out["label"] is Y
    assert torch.equal(out["label" + transform.suffix], expected)
    assert expected.dtype == torch.float32

    class Meta(torch.Tensor):
        pass

    assert type(transform(Y.as_subclass(Meta))) is torch.Tensor


def test_errors():
    with pytest.raises(ValueError, match=r"\(5,\).*Try: spatial_dims=1"):
        DistanceMap()(Y[0])
    with pytest.raises(ValueError, match=r"keys.*Try:"):
        DistanceMap()({"label": Y})
    with pytest.raises(KeyError):
        DistanceMap("mask")({"label": Y})
    with pytest.raises(ValueError, match=r"fractions.*Try: label > 0\.5"):
        DistanceMap()(Y * 0.5)
    with pytest.raises(ValueError, match=r"\(2, 2, 5\).*Try: num_classes=None"):
        DistanceMap(num_classes=2)(torch.stack([Y, Y]))
    with pytest.raises(ValueError, match="num_classes"):
        UNetWeightMap(num_classes=2)


@pytest.mark.parametrize("ignore_index", [-100, 255, 0])
@pytest.mark.parametrize(
    ("kind", "transform"), [(sf.BoundaryLoss, SignedDistanceMap), (sf.HausdorffDTLoss, DistanceMap)]
)
@pytest.mark.parametrize("classes", [1, 3])
def test_a_loss_with_the_map_is_the_loss_without(kind, transform, classes, ignore_index):
    """Also around ignored pixels."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, classes, 9, 10, generator=random)
    y = torch.randint(0, max(classes, 2), (1, 1, 9, 10), generator=random)
    y[0, 0, 2:4, 3:7] = ignore_index
    field = transform(num_classes=None if classes == 1 else classes, ignore_index=ignore_index)(y[0])[None]
    loss = kind(ignore_index=ignore_index)
    close(loss(x, y, distance_map=field), loss(x, y).double(), 1e-6)


def test_one_map_for_several_classes_is_refused():
    x, y = torch.randn(1, 3, 2, 5), Y[None]
    with pytest.raises(ValueError, match=r"\(1, 1, 2, 5\) for 3 classes.*Try: .*num_classes=3"):
        sf.BoundaryLoss()(x, y, distance_map=SignedDistanceMap()(Y)[None, None])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_pickles(transform):
    again = pickle.loads(pickle.dumps(transform))
    assert repr(again) == repr(transform)
    assert torch.equal(again(Y), transform(Y))


class Labels(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return SignedDistanceMap("label")({"label": torch.roll(Y, i, 1)[None]})


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_in_the_workers_of_a_loader(start):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{start} does not exist here")
    expected = torch.stack([Labels()[i]["label_signed_distance"] for i in range(4)])
    (batch,) = DataLoader(Labels(), batch_size=4, num_workers=2, multiprocessing_context=start)
    assert torch.equal(batch["label_signed_distance"], expected)
    x = torch.zeros(4, 1, 2, 5)
    given = sf.BoundaryLoss()(x, batch["label"], distance_map=batch["label_signed_distance"])
    close(given, sf.BoundaryLoss()(x, batch["label"]), 1e-6)
