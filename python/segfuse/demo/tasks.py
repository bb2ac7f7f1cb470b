"""The data of the demo: files checked by SHA-256, a split into train, guard and test, random training crops."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DATA_DIR = Path(__file__).parent / "data"
HEAD_DIR = Path("/usr/share/mricron/templates")
HEAD_PACKAGE = "mricron-data"

SHA256 = {
    "nuclei.npz": "a04aab7cc64f97fd79636466cd1bf38a46068167b98ab2511b60647cf3bdc3b4",
    "ch2.nii.gz": "a009051127f64dc3dd554d5f5b589870ea72106d9642c21b4e7093e478cfc309",
    "ch2bet.nii.gz": "592a2d20abdf36eefcb540ca8958428040edffc1bc1a18ba1dcfbabac77c5dd1",
}

BATCH = 8  # crops per step
STEPS_PER_EPOCH = 20  # so one epoch is 160 crops


class DataError(Exception):
    """A data file is missing or is not the file the demo was written for."""


@dataclass(frozen=True)
class Task:
    """One segmentation problem; images are float32 in [0, 1], masks are bool, both ``(K, 1, H, W)``."""

    name: str
    title: str
    train_image: Tensor
    train_mask: Tensor
    test_image: Tensor
    test_mask: Tensor
    crop: tuple[int, int]  # height and width of a training crop, multiples of 16
    turn: float  # a crop is turned by up to this many degrees
    view: tuple[int, int, int, int]  # test image, top, left, height of the part that the picture shows
    epochs: int  # default
    files: tuple[str, ...]
    split: str  # one sentence

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``BATCH`` random crops and their masks: moved, turned, scaled, mirrored, and with another gamma."""
        count, _, height, width = self.train_image.shape
        rows, columns = self.crop

        def draw(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(BATCH, 1, 1, generator=generator)

        index = torch.randint(count, (BATCH,), generator=generator)
        angle = draw(-self.turn, self.turn) * (math.pi / 180)
        scale = draw(0.85, 1.18)
        mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
        top, left = draw(rows / 2, height - rows / 2), draw(columns / 2, width - columns / 2)
        gamma = draw(-0.2, 0.2).exp()

        y = (torch.arange(rows) - (rows - 1) / 2).view(1, rows, 1)
        x = (torch.arange(columns) - (columns - 1) / 2).view(1, 1, columns) * mirror
        source_y = top + scale * (angle.cos() * y + angle.sin() * x)
        source_x = left + scale * (angle.cos() * x - angle.sin() * y)
        grid = torch.stack((2 * source_x / width - 1, 2 * source_y / height - 1), dim=-1)

        def sample(source: Tensor, mode: str) -> Tensor:
            return torch.nn.functional.grid_sample(
                source[index] if count > 1 else source.expand(BATCH, -1, -1, -1),
                grid,
                mode=mode,
                padding_mode="reflection",
                align_corners=False,
            )

        image = sample(self.train_image, "bilinear").clamp(0, 1) ** gamma.unsqueeze(1)
        return image, sample(self.train_mask.float(), "nearest").to(torch.uint8)


def _read(path: Path, missing: str) -> bytes:
    """The bytes of ``path``, whose SHA-256 is the one written above."""
    wanted = SHA256[path.name]
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"data file is missing: {path}\n  {missing}") from None
    except OSError as error:
        raise DataError(f"data file cannot be read: {path}\n  {error}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise DataError(
            f"data file is corrupt: {path}\n  expected SHA-256 {wanted}\n"
            f"  found    SHA-256 {found} ({len(content):,} bytes)\n  {missing}"
        )
    return content


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    array = array if array.ndim == 3 else array[None]
    return torch.from_numpy(np.ascontiguousarray(array)).unsqueeze(1)


def _busiest(mask: Tensor, size: int) -> tuple[int, int, int, int]:
    """The square of side ``size`` with the most foreground."""
    cover = torch.nn.functional.avg_pool2d(mask.float(), size, stride=4)
    _, _, rows, columns = cover.shape
    best = int(cover.argmax())
    return best // (rows * columns), 4 * (best // columns % rows), 4 * (best % columns), size


def _nuclei(data_dir: Path | None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    path = (data_dir or DATA_DIR) / "nuclei.npz"
    remedy = "It is part of segfuse: install segfuse again, or give the folder that holds it with --data-dir."
    with np.load(io.BytesIO(_read(path, remedy)), allow_pickle=False) as arrays:
        image, labels = arrays["image"].astype(np.float32), arrays["labels"]
    low, high = np.percentile(image[:, :304], (1, 99.8))  # of the training part only
    return np.clip((image - low) / (high - low), 0, 1).astype(np.float32), labels


def _outlines(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pixels of a nucleus with one of their four neighbours outside it."""
    padded = np.pad(labels, 1, mode="edge")
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (labels > 0) & np.any([neighbour != labels for neighbour in around], axis=0)


def _cells(name: str, title: str, *, crop: int, epochs: int, outlines: bool) -> Callable[[Path | None], Task]:
    def load(data_dir: Path | None = None) -> Task:
        image, labels = _nuclei(data_dir)
        mask = _outlines(labels) if outlines else labels > 0
        return Task(
            name=name,
            title=title,
            train_image=_tensor(image[:, :304]),
            train_mask=_tensor(mask[:, :304]),
            test_image=_tensor(image[:, 320:]),
            test_mask=_tensor(mask[:, 320:]),
            crop=(crop, crop),
            turn=180,
            view=_busiest(_tensor(labels[:, 320:] > 0), 128),
            epochs=epochs,
            files=("nuclei.npz",),
            split="One 512x512 image: columns 0-303 train, 304-319 guard (unused), 320-511 test.",
        )

    return load


def _volume(path: Path) -> npt.NDArray[Any]:
    """A NIfTI file known by its checksum: 181x217x181 uint8 at byte 352, first axis fastest."""
    remedy = (
        f"It is in the Debian package {HEAD_PACKAGE}: `apt install {HEAD_PACKAGE}`, or without root "
        f"`apt-get download {HEAD_PACKAGE}`, `dpkg-deb -x {HEAD_PACKAGE}_*.deb DIR` "
        "and `--data-dir DIR/usr/share/mricron/templates`."
    )
    voxels = np.frombuffer(gzip.decompress(_read(path, remedy)), np.uint8, offset=352)
    return voxels.reshape((181, 217, 181), order="F")


def _head(data_dir: Path | None = None) -> Task:
    folder = data_dir or HEAD_DIR
    head = _volume(folder / "ch2.nii.gz").astype(np.float32)
    brain = (_volume(folder / "ch2bet.nii.gz") > 0).astype(np.float32)

    def slices(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Axial slices, nose up, at 3 mm in the plane, padded to 80x64."""
        blocks = volume[:180, :216].reshape(60, 3, 72, 3, 181).mean(axis=(1, 3))
        return np.pad(blocks.transpose(2, 1, 0)[:, ::-1], ((0, 0), (4, 4), (2, 2)))

    image, mask = slices(head) / 255, slices(brain) >= 0.5
    keep = np.flatnonzero(mask.any(axis=(1, 2)))
    phase = (keep - keep[0]) % 20  # 12 train, 2 guard, 4 test, 2 guard
    train, test = keep[phase < 12], keep[(phase >= 14) & (phase < 18)]
    top = np.percentile(image[train], 99.8)
    image = np.clip(image / top, 0, 1).astype(np.float32)
    test_mask = _tensor(mask[test])
    return Task(
        name="head",
        title="skull stripping (T1 head, axial slices at 3 mm)",
        train_image=_tensor(image[train]),
        train_mask=_tensor(mask[train]),
        test_image=_tensor(image[test]),
        test_mask=test_mask,
        crop=(80, 64),
        turn=15,
        view=(int(test_mask.sum(dim=(1, 2, 3)).argmax()), 0, 0, 80),
        epochs=15,
        files=("ch2.nii.gz", "ch2bet.nii.gz"),
        split=(
            f"One head, in every 20 axial slices 12 train, 2 guard, 4 test, 2 guard ({len(train)} train, "
            f"{len(test)} test): the test slices are of the same subject. The mask is the output of a tool (BET)."
        ),
    )


TASKS: dict[str, Callable[[Path | None], Task]] = {
    "nuclei": _cells("nuclei", "nuclei (20 % foreground)", crop=80, epochs=6, outlines=False),
    "outlines": _cells("outlines", "outlines of the nuclei (3 % foreground)", crop=64, epochs=10, outlines=True),
    "head": _head,
}
