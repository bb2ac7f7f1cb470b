"""Every error message of the public interface, side by side in data/messages.txt.

``python tests/test_messages.py`` writes that file anew. Calls are those of test_errors.py; every place that raises is
reached by one of them. Messages of ``compat`` are those of the libraries it stands in for, and tested with them.
"""

from __future__ import annotations

import ast
import math
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import segfuse as sf
from segfuse.ops import disk_sums, erosion, pixel_stats
from segfuse.ops._hard_pair import hard_pair
from test_errors import CALLS, SETTINGS, X1, X3, Y1, Y3

PACKAGE = Path(sf.__file__).parent
RECORD = Path(__file__).parent / "data" / "messages.txt"
#: Not for users: what a formula that is not traced says is caught; a build that lacks a library, an abstract method.
APART = ("compat", "demo", "integrations", "backends/numba", "backends/cuda")
SILENT = ("NotImplementedError", "Untraceable", "ImportError", "SystemExit", "AttributeError")
HELPERS = ("_fail",)

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, of torch.jit

IMAGE, LABELS = torch.zeros(2, 5, 6), torch.zeros(2, 5, 6, dtype=torch.long)
SPARSE = torch.ones(2, 5, 6).to_sparse()
edt, windows = sf.distance_transform_edt, sf.local_moments


def pair(mode: str = "binary", axes: int = 2, hot: float = 1.0) -> Any:
    shape = (1, 1 if mode == "binary" else 3, *(3,) * axes)
    y = torch.zeros(shape)
    y[:, 0] = hot
    return hard_pair(*pixel_stats.check(torch.zeros(shape), y, mode=mode))


def segments(index: Any, C: int = 1, groups: int = 1) -> Any:
    x, g = pixel_stats.check(torch.zeros(1, C, 4), torch.zeros(1, C, 4), mode="multilabel")
    return pixel_stats.sums(x, g, pixel_stats.Plan(["tp"]), pixel_stats.Segments(index, groups))


def forced() -> None:
    with sf.use_backend("cuda" if not torch.cuda.is_available() else "cpp"):
        sf.pixel_stats(X3.to("meta"), Y3.to("meta"))


#: Of calls that test_errors.py leaves to the tests of their ops.
MORE: dict[str, Callable[[], Any]] = {
    # distance_transform_edt
    "edt: array": lambda: edt(LABELS.numpy()),
    "edt: sparse": lambda: edt(SPARSE),
    "edt: mode": lambda: edt(LABELS, mode="outside"),
    "edt: dtype": lambda: edt(LABELS, dtype=torch.float16),
    "edt: one axis": lambda: edt(LABELS[0, 0]),
    "edt: five axes": lambda: edt(torch.zeros(1, 1, 1, 1, 1, dtype=torch.bool)),
    "edt: spatial_dims": lambda: edt(LABELS, spatial_dims=4),
    "edt: spatial_dims above ndim": lambda: edt(LABELS[0], spatial_dims=3),
    "edt: an axis of 2^31": lambda: edt(torch.zeros(1, dtype=torch.bool).expand(1, 2**31)),
    "edt: labels of float": lambda: edt(IMAGE, mode="labels"),
    "edt: float without threshold": lambda: edt(IMAGE),
    "edt: float with classes": lambda: edt(IMAGE, threshold=0.5, classes=(0, 1)),
    "edt: complex": lambda: edt(IMAGE.to(torch.complex64)),
    "edt: threshold of integers": lambda: edt(LABELS, threshold=0.5),
    "edt: threshold of a word": lambda: edt(IMAGE, threshold="0.5"),
    "edt: threshold NaN": lambda: edt(IMAGE, threshold=math.nan),
    "edt: classes of labels": lambda: edt(LABELS, mode="labels", classes=(0, 1)),
    "edt: one class": lambda: edt(LABELS, classes=3),
    "edt: classes of floats": lambda: edt(LABELS, classes=(0.5, 1)),
    "edt: class above 2^63": lambda: edt(LABELS, classes=(2**63,)),
    "edt: indices of two": lambda: edt(LABELS, mode="nearest_two", return_indices=True),
    "edt: spacing of a word": lambda: edt(LABELS, spacing="1.0"),
    "edt: spacing of words": lambda: edt(LABELS, spacing=("x", 1.0)),
    "edt: spacing of three": lambda: edt(LABELS, spacing=(1.0, 1.0, 1.0)),
    "edt: spacing below 0": lambda: edt(LABELS, spacing=(1.0, -1.0)),
    "edt: spacing apart": lambda: edt(LABELS, spacing=(1e-120, 1.0)),
    # local_moments
    "moments: array": lambda: windows(IMAGE.numpy()),
    "moments: sparse": lambda: windows(SPARSE),
    "moments: integers": lambda: windows(LABELS),
    "moments: no channel": lambda: windows(IMAGE[0]),
    "moments: devices": lambda: windows(IMAGE, IMAGE.to("meta")),
    "moments: shapes": lambda: windows(IMAGE, IMAGE[:, :4]),
    "moments: dtypes": lambda: windows(IMAGE, IMAGE.double()),
    "moments: kernel": lambda: windows(IMAGE, kernel="round"),
    "moments: padding": lambda: windows(IMAGE, padding="same"),
    "moments: even window": lambda: windows(IMAGE, window=4),
    "moments: windows": lambda: windows(IMAGE, window=(3, 3)),
    "moments: sigma": lambda: windows(IMAGE, sigma=0.0),
    "moments: window above the image": lambda: windows(IMAGE, window=11, padding="valid"),
    "windows: four axes": lambda: sf.SSIMLoss()(torch.zeros(1, 1, 2, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2, 2)),
    "SSIM: window above a scale": lambda: sf.SSIMLoss(window=3, scale_weights=[0.5] * 2)(X3, Y3),
    "SSIM: scales above the image": lambda: sf.SSIMLoss(window=3, padding="zeros", scale_weights=[1.0] * 4)(
        X1, Y1.float()
    ),
    # pixel_stats
    "pixel_stats: mode": lambda: sf.pixel_stats(X3, Y3, mode="classes"),
    "pixel_stats: no names": lambda: sf.pixel_stats(X3, Y3, None),
    "pixel_stats: ignore_index": lambda: sf.pixel_stats(X3, Y3, ignore_index=255.0),
    "ignore_index above 2^63": lambda: sf.DiceLoss(ignore_index=2**70)(X3, Y3),
    "pixel_stats: 17 terms": lambda: pixel_stats.Plan(
        (pixel_stats.Term("focal", gamma), 0) for gamma in range(pixel_stats.MAX_TERMS + 1)
    ),
    "segments: dtype": lambda: segments(torch.zeros(1, 4, dtype=torch.long)),
    "segments: number": lambda: segments(torch.ones(1, 4, dtype=torch.int32)),
    # lovasz_extension
    "lovasz: word": lambda: sf.LovaszLoss(classes="some"),
    "lovasz: one class": lambda: sf.LovaszLoss(classes=3),
    "lovasz: class of the input": lambda: sf.LovaszLoss(classes=(3,))(X3, Y3),
    "deep supervision: a dictionary": lambda: sf.DeepSupervisionLoss()({"out": X3}, Y3),
    "boundary: one map": lambda: sf.BoundaryLoss()(X3, Y3, distance_map=torch.ones(2, 1, 4, 5)),
    "lovasz: weight map": lambda: sf.LovaszLoss()(X3, Y3, weight_map=torch.ones(2, 4, 5)),
    "lovasz: soft target": lambda: sf.LovaszLoss()(X1, torch.full((2, 1, 4, 5), 0.5)),
    # pairs
    "pair: four axes": lambda: pair(axes=4),
    "pair: classes": lambda: hard_pair(
        *pixel_stats.check(torch.zeros(1, 2**15 + 1, 1), torch.zeros(1, 1, dtype=torch.int64))
    ),
    "pair: soft target": lambda: pair(hot=0.5),
    "pair: two classes": lambda: sf.HausdorffERLoss(mode="multiclass")(X3, torch.ones(2, 3, 4, 5)),
    "erosions": lambda: erosion.erosion(pair(), steps=0),
    "erosion: alpha": lambda: erosion.erosion(pair(), alpha=math.inf),
    "erosion: norm": lambda: erosion.erosion(pair(), norm="max"),
    "radii": lambda: disk_sums.disk_sums(pair(), radii=(0,)),
    "radii above a ball": lambda: disk_sums.disk_sums(pair(), radii=(3, 5000)),
    "radii: alpha": lambda: disk_sums.disk_sums(pair(), alpha=100.0),
    "radii: argmax of masks": lambda: disk_sums.disk_sums(pair(), hard="argmax"),
    "points: alpha": lambda: sf.WeightedHausdorffLoss(alpha=1.0),
    "points: eps": lambda: sf.WeightedHausdorffLoss(eps=0),
    "points: form": lambda: sf.WeightedHausdorffLoss(form="min"),
    "points: number": lambda: sf.WeightedHausdorffLoss()(X1, [torch.zeros(1, 2)]),
    "points: shape": lambda: sf.WeightedHausdorffLoss()(X1, [torch.zeros(1, 3)] * 2),
    "points: NaN": lambda: sf.WeightedHausdorffLoss()(X1, [torch.full((1, 2), math.nan)] * 2),
    "points: classes": lambda: sf.WeightedHausdorffLoss()(X3, [torch.zeros(1, 2)] * 2),
    "points: none": lambda: sf.WeightedHausdorffLoss()(X1, None),
    # settings
    "class_weight of a number": lambda: sf.DiceLoss(class_weight=2.0),
    "class_weight of words": lambda: sf.DiceLoss(class_weight=["a", "b"]),
    "deep supervision: two targets": lambda: sf.DeepSupervisionLoss()(X3, [Y3, Y3]),
    "deep supervision: targets": lambda: sf.DeepSupervisionLoss()([X3, X3], [Y3]),
    "deep supervision: weights": lambda: sf.DeepSupervisionLoss(weights=[1.0])([X3, X3], Y3),
    "deep supervision: no output": lambda: sf.DeepSupervisionLoss()([], []),
    # backends, patch, transforms, scripts
    "use_backend": lambda: sf.use_backend("fast").__enter__(),
    "no backend": forced,
    "patch: library": lambda: sf.patch("keras"),
    "patch: name": lambda: sf.patch("monai", only=["Dice"]),
    "unpatch": lambda: sf.unpatch("keras"),
    "transform: keys": lambda: sf.transforms.DistanceMap()({"label": LABELS}),
    "transform: axes": lambda: sf.transforms.DistanceMap()(LABELS[0, 0]),
    "transform: fractions": lambda: sf.transforms.DistanceMap()(IMAGE + 0.5),
    "transform: channels of classes": lambda: sf.transforms.DistanceMap(num_classes=2)(LABELS),
    "transform: classes of instances": lambda: sf.transforms.UNetWeightMap(num_classes=2),
    "script of a loss that learns": lambda: sf.TLoss().__prepare_scriptable__(),
    "trace of two results": lambda: torch.jit.trace(lambda y: edt(y, return_indices=True)[0], LABELS),
    "a loss from another process": lambda: torch.ops.segfuse.jit("DiceLoss-0", [X3, Y3], "{}", []),
}
CASES = {name: call for name, (call, *_) in {**CALLS, **SETTINGS}.items()} | MORE


def outcome(name: str) -> tuple[str, set[tuple[str, int]]]:
    """The message of a call, and the lines of the package that it passed."""
    try:
        CASES[name]()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = {(f.filename, f.lineno) for f in frames if f.lineno is not None}
        text = re.sub(r"(on meta); .*\. Try", r"\1; why not, by backend. Try", str(error))
        return f"{type(error).__name__}: {text}", lines
    raise AssertionError(f"{name} did not raise")


def sites() -> list[tuple[str, int, int]]:
    """File, first and last line of every statement that raises."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if str(path.relative_to(PACKAGE)).startswith(APART):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                if getattr(node.exc.func, "id", "") not in SILENT:
                    found.append((str(path), node.lineno, node.end_lineno or node.lineno))
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in HELPERS:
                found.append((str(path), node.lineno, node.end_lineno or node.lineno))
    return found


def record() -> str:
    return "\n".join(f"{name}\n    {outcome(name)[0]}" for name in CASES) + "\n"


def test_every_place_that_raises_is_reached():
    passed = set().union(*(outcome(name)[1] for name in CASES))
    missing = [
        f"{Path(file).relative_to(PACKAGE)}:{first}"
        for file, first, last in sites()
        if not any((file, line) in passed for line in range(first, last + 1))
    ]
    assert not missing, missing


def test_messages_are_those_on_record():
    assert record() == RECORD.read_text(), "if the new ones are meant: python tests/test_messages.py"


@pytest.mark.parametrize("name", CASES)
def test_a_message_says_which_call_works(name):
    """What was given stands in it, and what to do."""
    text = outcome(name)[0]
    assert "Try: " in text, text
    assert "\n" not in text and len(text) < 420, text


if __name__ == "__main__":
    RECORD.write_text(record())
