"""``predictions.png``: the held-out part as every loss's model sees it, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..maps import boundary_penalty
from ..transforms import SignedDistanceMap, UNetWeightMap
from .report import Row
from .tasks import Task
from .workers import Failure

COLUMNS = 6
PANEL = 2.2  # inches, as the next
HEADER = 0.8
# Okabe and Ito's colours, told apart by colour-blind readers too.
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = "#009E73", "#E8601C", "#56B4E9"


def _rgb(colour: str) -> npt.NDArray[np.float64]:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _overlay(
    image: npt.NDArray[Any], truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    picture = np.repeat(image[..., None].astype(np.float64) ** 0.7, 3, axis=2)  # dim cells show
    for where, colour, opacity in (
        (truth & predicted, TRUE_POSITIVE, 0.65),
        (predicted & ~truth, FALSE_POSITIVE, 0.9),
        (truth & ~predicted, FALSE_NEGATIVE, 0.9),
    ):
        picture[where] = (1 - opacity) * picture[where] + opacity * _rgb(colour)
    return picture


def _panel(axes: Axes, picture: npt.NDArray[Any] | None, title: str, second: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if picture is None:
        axes.set_facecolor("#eeeeee")
        axes.text(0.5, 0.5, "failed", ha="center", va="center", transform=axes.transAxes, color="#666666")
    else:
        axes.imshow(picture, interpolation="nearest")
    axes.text(0.0, 1.115, title, transform=axes.transAxes, fontsize=9.5, fontweight="bold", va="bottom")
    axes.text(0.0, 1.02, second, transform=axes.transAxes, fontsize=9, va="bottom", color="#333333")


def _section(figure: Any, task: Task, rows: Sequence[Row], lines: int) -> None:
    index, top, left, size = task.view
    window = (index, 0, slice(top, top + size), slice(left, left + size))
    image, truth = task.test_image[window].numpy(), task.test_mask[window].numpy()
    grid = figure.subplots(
        lines, COLUMNS, squeeze=False,
        gridspec_kw={"left": 0.012, "right": 0.988, "wspace": 0.06, "hspace": 0.3,
                     "top": 1 - 0.72 / (lines * PANEL * 1.25 + 0.5), "bottom": 0.1 / lines},
    )  # fmt: skip
    figure.suptitle(
        task.title[0].upper() + task.title[1:], x=0.012, y=0.995, ha="left", va="top", fontsize=12.5, color="#333333"
    )
    panels = list(grid.flat)
    _panel(panels[0], _overlay(image, truth, truth), "Truth", f"{task.test_mask.float().mean():.1%} foreground")
    for axes, row in zip(panels[1:], rows, strict=False):
        if isinstance(row.outcome, Failure):
            _panel(axes, None, row.job.entry.label, "")
            continue
        predicted = row.outcome.prediction[index][window[2:]]
        note = f" ({row.outcome.note})" if row.outcome.note else ""
        _panel(axes, _overlay(image, truth, predicted), row.job.entry.label, f"Dice {row.outcome.dice:.3f}{note}")
    for axes in panels[1 + len(rows) :]:
        axes.set_visible(False)


def draw(path: Path, sections: Sequence[tuple[Task, Sequence[Row]]]) -> None:
    """Draw one block of panels for each task under a common legend, and save it."""
    lines = [math.ceil((1 + len(rows)) / COLUMNS) for _, rows in sections]
    heights = [HEADER, *(count * PANEL * 1.25 + 0.5 for count in lines)]
    names = (("found", TRUE_POSITIVE), ("false alarm", FALSE_POSITIVE), ("missed", FALSE_NEGATIVE))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the reader's own settings are
        figure = Figure(figsize=(COLUMNS * PANEL * 1.06, sum(heights)), facecolor="white")
        header, *parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (task, rows), count in zip(parts, sections, lines, strict=True):
            _section(part, task, rows, count)
        header.text(0.012, 0.72, "One model per loss, on held-out pixels", fontsize=15, fontweight="bold", va="center")
        header.text(
            0.012, 0.3, "Each panel is a window of the held-out part; Dice is that of the whole held-out part.",
            fontsize=9.5, va="center", color="#333333",
        )  # fmt: skip
        header.legend(
            handles=[Patch(color=colour, label=name) for name, colour in names],
            loc="center right", bbox_to_anchor=(0.995, 0.5), ncols=3, frameon=False, fontsize=11,
        )  # fmt: skip
        figure.savefig(path, dpi=110)


def draw_maps(path: Path, tasks: Sequence[Task]) -> None:
    """Draw what the boundary losses make of a mask: signed distance, penalty and U-Net weight map, and save it."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(4 * PANEL * 1.35, len(tasks) * PANEL * 1.3 + 0.4), facecolor="white")
        grid = figure.subplots(
            len(tasks), 4, squeeze=False, gridspec_kw={"left": 0.02, "right": 0.97, "wspace": 0.25, "hspace": 0.35}
        )
        for line, task in zip(grid, tasks, strict=True):
            index, top, left, size = task.view
            mask = task.test_mask[index, 0]
            maps = (
                (mask, "Mask", task.title, "gray"),
                (SignedDistanceMap()(mask), "Signed distance", "BoundaryLoss", "coolwarm"),
                (
                    boundary_penalty(mask, 2, 2, True, None, torch.float32),
                    "Penalty phi",
                    "DistanceMapCrossEntropyLoss",
                    "viridis",
                ),
                (UNetWeightMap()(mask), "Gap weight", "UNetWeightedCrossEntropyLoss", "magma"),
            )
            for axes, (values, title, second, colours) in zip(line, maps, strict=True):
                _panel(axes, None, title, second)
                axes.texts[0].remove()  # "failed"
                shown = values[top : top + size, left : left + size].float().numpy()
                limit = abs(shown).max() if colours == "coolwarm" else None
                image = axes.imshow(shown, cmap=colours, vmin=limit and -limit, vmax=limit, interpolation="nearest")
                if colours != "gray":
                    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03).ax.tick_params(labelsize=7)
        figure.savefig(path, dpi=110)
