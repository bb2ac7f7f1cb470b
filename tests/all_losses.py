"""Every loss with settings that tell its parameters apart, for the tests that hold for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import segfuse as sf

MODES = ("binary", "multilabel", "multiclass")
SIGMOID = MODES[:2]
CHANNELS = {"binary": 1, "multilabel": 3, "multiclass": 3}
CLASS_WEIGHT = {"binary": [0.7], "multilabel": [0.5, 1.0, 2.0], "multiclass": [0.5, 1.0, 2.0]}


def own_formula(s: Any) -> Any:
    """Dice with other numbers, as a user would write it."""
    return 1 - (2 * s.tp + 0.3) / (s.pred + s.true + 0.7)


def _region(formula: Callable[[Any], Any] = own_formula, **options: Any) -> sf.RegionLoss:
    return sf.RegionLoss(formula, **options)


def _compound(**options: Any) -> sf.CompoundLoss:
    return sf.CompoundLoss({"dice": (0.7, sf.DiceLoss(**options)), "focal": (1.3, sf.FocalLoss(gamma=1.5, **options))})


def _deep(weights: Any = "half", resize: str = "nearest-exact", **options: Any) -> sf.DeepSupervisionLoss:
    return sf.DeepSupervisionLoss(sf.DiceLoss(**options), weights=weights, resize=resize)


POSITIONAL = {  # these need spatial axes, three at most, and hard targets
    "BlobLoss",
    "BoundaryLoss",
    "HausdorffDTLoss",
    "ShapeAwareLoss",
    "DistanceMapCrossEntropyLoss",
    "UNetWeightedCrossEntropyLoss",
    "HausdorffCVLoss",
    "HausdorffERLoss",
    "WeightedHausdorffLoss",
}


@dataclass(frozen=True)
class Variant:
    """A class, settings that are not its defaults, and the modes in which they make sense."""

    name: str  # of the class
    settings: dict[str, Any]
    modes: tuple[str, ...] = MODES

    def __call__(self, **common: Any) -> Any:
        special = {"RegionLoss": _region, "CompoundLoss": _compound, "DeepSupervisionLoss": _deep}
        return special.get(self.name, getattr(sf, self.name))(**self.settings, **common)

    def __str__(self) -> str:
        return ",".join([self.name, *(f"{name}={value}" for name, value in self.settings.items())])

    @property
    def positional(self) -> bool:
        """The value depends on where a pixel is."""
        return self.name in POSITIONAL

    @property
    def weighable(self) -> bool:
        """A weight map has a meaning for it."""
        return self.name != "LovaszLoss"

    @property
    def may_vanish(self) -> bool:
        """A few scattered errors cost nothing."""
        return self.name == "HausdorffERLoss"

    @property
    def windowed(self) -> bool:
        """A pixel's part depends on its neighbours."""
        return issubclass(getattr(sf, self.name), sf.losses.structural_similarity.WindowLoss)

    @property
    def compound(self) -> bool:
        return issubclass(getattr(sf, self.name), sf.CompoundLoss)


def _variants(name: str, *settings: dict[str, Any], modes: tuple[str, ...] = MODES) -> list[Variant]:
    return [Variant(name, s, modes) for s in settings]


VARIANTS: list[Variant] = [
    *_variants("CrossEntropyLoss", {}, {"label_smoothing": 0.1}, {"normalize": "numel"}, {"normalize": "weight"}),
    *_variants("CrossEntropyLoss", {"beta": 2.5}, modes=SIGMOID),
    *_variants("CrossEntropyLoss", {"class_weight": "balanced"}),
    *_variants("BalancedCrossEntropyLoss", {"beta": 0.2}, {"beta": 0.2, "label_smoothing": 0.1}),
    *_variants("BalancedCrossEntropyLoss", {}, {"beta_scope": "batch", "beta_clip": 0.1}, modes=SIGMOID),
    *_variants("TopKCrossEntropyLoss", {"k": 30.0}, {"k": 45.0, "per_sample": True}),
    *_variants("FocalLoss", {}, {"alpha": 0.2, "gamma": 1.5}, {"alpha": None, "gamma": 0.5, "label_smoothing": 0.1}),
    *_variants("FocalLoss", {"alpha": 0.3, "gamma": 1.0, "activation": "sigmoid"}),
    *_variants("TLoss", {}, {"nu_tilde": 0.3, "lam": 0.5, "eps": 1e-3}),
    *_variants("DiceLoss", {}, {"smooth": (0.3, 0.7)}, {"squared": True, "batch": True}, {"log_loss": True}),
    *_variants(
        "DiceLoss", {"soft_label": "l1", "smooth": 1e-3}, {"average": "micro"}, {"empty": "zero"}, {"empty": "skip"}
    ),
    *_variants(
        "GeneralizedDiceLoss", {}, {"weight": "simple", "batch": True}, {"weight": "uniform", "smooth": (0.1, 0.2)}
    ),
    *_variants("LogCoshDiceLoss", {}, {"reduce_first": True, "squared": True}),
    *_variants("SelfAdjustingDiceLoss", {}, {"alpha": 0.7, "smooth": 0.5}, {"form": "set", "alpha": 1.3}),
    *_variants("SelfAdjustingDiceLoss", {"true_class_only": True}),
    *_variants("JaccardLoss", {}, {"squared": True, "smooth": (0.3, 0.7)}),
    *_variants("TverskyLoss", {}, {"alpha": 0.1, "beta": 0.9, "batch": True}),
    *_variants("FocalTverskyLoss", {}, {"alpha": 0.1, "beta": 0.9, "gamma": 1.4, "power": "after_mean"}),
    *_variants("SensitivitySpecificityLoss", {"w": 0.8, "smooth": 0.5}, {"form": "brosch", "r": 0.3, "eps": 0.1}),
    *_variants("LovaszLoss", {}, {"per_image": False}, {"per_image": True, "classes": "all"}),
    *_variants("LovaszLoss", {"per_image": False, "classes": (1, 2)}, modes=MODES[2:]),
    *_variants("MCCLoss", {}, {"eps": 1e-3, "perfect": "zero", "batch": True}),
    *_variants("ComboLoss", {}, {"alpha": 0.3, "beta": 0.8, "offset": False}),
    *_variants("DiceCELoss", {}, {"lambda_dice": 0.4, "lambda_ce": 1.7, "label_smoothing": 0.1, "batch": True}),
    *_variants("DiceFocalLoss", {}, {"lambda_dice": 0.4, "lambda_focal": 1.7, "alpha": 0.3, "gamma": 1.5}),
    *_variants(
        "ExponentialLogarithmicLoss", {}, {"w_dice": 0.3, "w_cross": 0.6, "gamma_dice": 0.7, "gamma_cross": 0.9}
    ),
    *_variants("UnifiedFocalLoss", {}, {"lam": 0.3, "delta": 0.7, "gamma": 0.2, "asymmetric": False}),
    *_variants("BlobLoss", {}, {"weight_global": 0.5, "weight_blob": 3.0, "masking": "zero_logit"}),
    *_variants("BlobLoss", {"criterion": sf.FocalLoss(gamma=1.5)}),
    *_variants("BoundaryLoss", {}, {"delta": 0.25, "spacing": 0.5}),
    *_variants("HausdorffDTLoss", {}, {"alpha": 1.5, "hard": "argmax"}, {"one_sided": True, "log": True}),
    *_variants("ShapeAwareLoss", {}, {"form": "pixel", "hard": "argmax", "spacing": 0.5}),
    *_variants("DistanceMapCrossEntropyLoss", {}, {"phi": "inverse", "spacing": 0.5, "label_smoothing": 0.1}),
    *_variants(
        "UNetWeightedCrossEntropyLoss",
        {},
        {"w0": 3.0, "sigma": 2.0, "only_background": False, "spacing": 0.5},
    ),
    *_variants("HausdorffERLoss", {"erosions": 3}, {"alpha": 1.5, "erosions": 4, "norm": "double"}),
    *_variants("HausdorffCVLoss", {"radii": (1, 2)}, {"alpha": 1.0, "radii": (2,)}),
    *_variants("HausdorffCVLoss", {"radii": (1, 3), "hard": "argmax"}, modes=("multiclass",)),
    *_variants("WeightedHausdorffLoss", {}, {"alpha": -2.5, "eps": 1e-4}, {"alpha": -math.inf}, {"form": "power_min"}),
    *_variants("CMSSLLoss", {}, {"window": 5, "sigma": 1.1, "beta": 0.3, "e_max_scope": "sample", "lambda_ce": 0.5}),
    *_variants("CMSSLLoss", {"threshold": 0.2, "kernel": "box", "C4": 0.1, "eps_var": 1e-4, "padding": "zeros"}),
    *_variants("CMSSLLoss", {"detach_e": True, "activation": "sigmoid"}),
    *_variants("SSIMLoss", {"window": 3, "padding": "zeros"}),
    *_variants(
        "SSIMLoss",
        {"window": 5, "sigma": 0.8, "kernel": "box", "padding": "zeros", "data_range": 1.5, "k1": 0.05, "k2": 0.1},
        {"window": 3, "padding": "zeros", "scale_weights": (0.4, 0.6)},
    ),
    *_variants("RegionLoss", {}),
    *_variants("CompoundLoss", {}),
    *_variants("DeepSupervisionLoss", {}),
]

#: What the defaults need to fit into the small images of the tests.
FITTING = {"SSIMLoss": {"window": 3, "padding": "zeros"}}

#: A variant and a mode: every mode for the first variant of a class, one in turn for the others.
FIRST = {variant.name: variant for variant in reversed(VARIANTS)}
ALL = [
    (variant, mode)
    for number, variant in enumerate(VARIANTS)
    for mode in (variant.modes if variant is FIRST[variant.name] else (variant.modes[number % len(variant.modes)],))
]
IDS = [f"{variant}-{mode}" for variant, mode in ALL]


def problem(
    mode: str,
    spatial: tuple[int, ...] = (5, 6),
    dtype: torch.dtype = torch.float64,
    n: int = 2,
    soft: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Random logits and a target; every class occurs in every sample of more than a few pixels."""
    random = torch.Generator().manual_seed(seed)
    C = CHANNELS[mode]
    x = 2 * torch.randn((n, C, *spatial), generator=random, dtype=torch.float64)
    if soft:
        y = torch.rand(x.shape, generator=random, dtype=torch.float64)
        return x.to(dtype), y / y.sum(1, keepdim=True) if mode == "multiclass" else y
    if mode == "multiclass":
        return x.to(dtype), torch.randint(0, C, (n, *spatial), generator=random)
    return x.to(dtype), (torch.rand(x.shape, generator=random) < 0.4).long()
