"""Which losses the demo trains: the survey's table first, then every other class of ``segfuse.losses``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from segfuse import losses

# The survey's table (Jadon 2020, arXiv 2006.14822): id, name, class, options.
SURVEY: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("bce", "Binary CE", "CrossEntropyLoss", {}),
    ("weighted_ce", "Weighted CE (beta 2)", "CrossEntropyLoss", {"beta": 2.0}),
    ("balanced_ce", "Balanced CE", "BalancedCrossEntropyLoss", {}),
    ("focal", "Focal", "FocalLoss", {}),
    ("dice", "Dice", "DiceLoss", {}),
    ("tversky", "Tversky", "TverskyLoss", {}),
    ("focal_tversky", "Focal Tversky", "FocalTverskyLoss", {}),
    ("sensitivity_specificity", "Sensitivity-specificity", "SensitivitySpecificityLoss", {}),
    ("combo", "Combo", "ComboLoss", {}),
    ("exponential_logarithmic", "Exponential-logarithmic", "ExponentialLogarithmicLoss", {}),
    ("log_cosh_dice", "Log-cosh Dice", "LogCoshDiceLoss", {}),
)
# Losses made to accompany a region loss: alone they are near 0 for an empty prediction. The weight beside Dice.
COMPANIONS = {"BoundaryLoss": 0.1, "HausdorffDTLoss": 0.1, "HausdorffERLoss": 0.1, "HausdorffCVLoss": 0.1}
# As its authors train it: alone it can come to rest where all is background.
OPTIONS: dict[str, dict[str, Any]] = {"CMSSLLoss": {"lambda_ce": 0.5}}
FOR_POINTS = ("WeightedHausdorffLoss",)  # these want a few points, not masks
NAMES = ("Dice", "Tversky", "Hausdorff")  # keep their capital inside a label
HYPHENS = ("cross entropy", "Self adjusting", "Top K")


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    id: str
    label: str
    class_name: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    beside_dice: float | None = None  # its weight there

    @property
    def call(self) -> str:
        own = f"{self.class_name}({', '.join(f'{k}={v!r}' for k, v in self.options.items())})"
        return own if self.beside_dice is None else f"DiceLoss() + {self.beside_dice:g} * {own}"

    def build(self) -> nn.Module:
        own: losses.DiceLoss = getattr(losses, self.class_name)(**self.options)
        return own if self.beside_dice is None else losses.DiceLoss() + self.beside_dice * own


class UnknownLoss(Exception):
    """A loss was asked for that the registry does not hold."""


def words(class_name: str) -> list[str]:
    """``FocalTverskyLoss`` -> ``["Focal", "Tversky"]``; capitals stay together: ``["Hausdorff", "DT"]``."""
    stem = class_name.removesuffix("Loss").replace("UNet", "Unet")
    found = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+", stem)
    return found if len(stem) > 1 else [f"{stem}-Loss"]


def _joins(class_name: str) -> bool:
    """True for a loss that can be built without an argument and accepts ``mode="binary"``."""
    cls = getattr(losses, class_name)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)) or inspect.isabstract(cls):
        return False
    try:
        cls(mode="binary")
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


def entries() -> dict[str, Entry]:
    """Every loss of the demo by its id, in the order of the table."""
    present = [name for name in losses.__all__ if _joins(name) and name not in FOR_POINTS]
    table = [Entry(*row) for row in SURVEY if row[2] in present]
    named = {entry.class_name for entry in table}
    for name in present:
        if name not in named:
            parts = words(name)
            label = " ".join(
                [parts[0], *(part if part.isupper() or part in NAMES else part.lower() for part in parts[1:])]
            )
            for pair in HYPHENS:
                label = label.replace(pair, pair.replace(" ", "-"))
            if name in COMPANIONS:
                label = f"Dice + {label}"
            table.append(
                Entry(
                    "_".join(parts).replace("-", "_").lower(), label, name, OPTIONS.get(name, {}), COMPANIONS.get(name)
                )
            )
    return {entry.id: entry for entry in table}


def choose(text: str) -> list[Entry]:
    """The entries of a comma-separated list of ids or class names; ``all`` and ``survey`` are groups."""
    known = entries()
    groups: dict[str, Sequence[str]] = {"all": tuple(known), "survey": [row[0] for row in SURVEY if row[0] in known]}
    by_class = {entry.class_name.lower(): entry.id for entry in reversed(known.values())}
    chosen: dict[str, Entry] = {}
    unknown: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        key = name.lower().replace("-", "_")
        found = groups.get(key) or [by_class.get(key, key)]
        unknown += [name for id in found if id not in known]
        chosen.update((id, known[id]) for id in found if id in known)
    if unknown:
        raise UnknownLoss(f"unknown loss: {', '.join(unknown)}\n  known: {', '.join([*groups, *known])}")
    if not chosen:
        raise UnknownLoss(f"no loss given\n  known: {', '.join([*groups, *known])}")
    return list(chosen.values())
