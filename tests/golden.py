"""The golden file, and for every id in it how to build that loss.

Logits, targets, weights and parameters come from the file, so any file with the same ids can be checked:
``SEGFUSE_GOLDEN=other.json pytest tests/test_golden.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import segfuse as sf

FILE = Path(os.environ.get("SEGFUSE_GOLDEN") or Path(__file__).parent / "data" / "golden.json")
DATA: dict[str, Any] = json.loads(FILE.read_text())
CASES: dict[str, dict[str, Any]] = {case["id"]: case for case in DATA["cases"]}
EDGE_CASES: dict[str, dict[str, Any]] = {case["id"]: case for case in DATA["edge_cases"]}
IGNORED = -100

# ---------------------------------------------------------------------------------------------------- inputs

CALL = ("weight_map", "ignore", "target")  # parameters of the call; the others belong to the loss


def _array(name: str, key: str, shape: str = "shape") -> Tensor:
    entry = DATA["inputs"][name]
    values = torch.tensor(entry[key], dtype=torch.float64)
    return values.reshape(entry[shape]) if shape in entry else values


def logits(case: dict[str, Any]) -> Tensor:
    return _array(case["input"][0], "logits")


def target(case: dict[str, Any]) -> Tensor:
    """Labels with every option of the call applied: soft, ignored pixels, or the constant target of an edge case."""
    params = case.get("params", {})
    if params.get("target"):
        return _array(params["target"], "values")
    name, _, described = case["input"].partition(" logits, target: ")
    if described:
        fill = {"empty": 0, "full": 1, "every pixel ignored": IGNORED}[described]
        return torch.full(labels(name).shape, fill)
    found = labels(name)
    return found.masked_fill(ignored(case), IGNORED) if "ignore" in params else found


def labels(name: str) -> Tensor:
    key = "target_shape" if "target_shape" in DATA["inputs"][name] else "shape"
    return _array(name, "target", key).long()


def ignored(case: dict[str, Any]) -> Tensor:
    return _array(case["params"]["ignore"], "values") != 0


def weight_map(case: dict[str, Any]) -> Tensor | None:
    name = case.get("params", {}).get("weight_map")
    return None if name is None else _array(name, "values")


def gradient(case: dict[str, Any]) -> Tensor:
    return torch.tensor(case["grad"], dtype=torch.float64).reshape(logits(case).shape)


# ---------------------------------------------------------------------------------------------------- losses

WORDS = {  # parameter of the file: (option, its values)
    "smooth_nr": ("smooth", None),
    "lambda": ("lam", None),
    "variant": ("form", None),
    "w": ("weight", {"1/Y^2": "square", "1/Y": "simple", "1": "uniform"}),
    "phi": ("phi", {"inverse_normalized": "normalized"}),
    "inner_offset": ("delta", None),
    "w_c": ("class_weight", {1.0: None}),
    "criterion": ("criterion", {"dice.default": sf.DiceLoss()}),
}
IMPLIED = ("connectivity",)  # always with corners


def options(case: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a case in the words of segfuse."""
    params = {name: value for name, value in case.get("params", {}).items() if name not in CALL}
    found: dict[str, Any] = {"mode": "binary" if case["input"][0] == "B" else "multiclass"}
    for name, value in params.items():
        option, values = WORDS.get(name, (name, None))
        if name == "w" and case["loss"] != "generalized_dice":
            option, values = "w", None
        if name == "smooth_dr" or name in IMPLIED:
            continue
        if name == "smooth_nr":
            value = (value, params["smooth_dr"])
        if name == "class_weight":
            value = DATA["inputs"][value]["values"]
        found[option] = value if values is None else values[value]
    return found


Build = Callable[[dict[str, Any]], sf.losses._base.Loss]


def _of(cls: type, **more: Any) -> Build:
    return lambda case: cls(**{**more, **options(case)})


_CE, _BALANCED, _FOCAL, _T, _TOPK = map(
    _of, (sf.CrossEntropyLoss, sf.BalancedCrossEntropyLoss, sf.FocalLoss, sf.TLoss, sf.TopKCrossEntropyLoss)
)
_DICE, _GDICE, _IOU, _TVERSKY, _FOCAL_TVERSKY = map(
    _of, (sf.DiceLoss, sf.GeneralizedDiceLoss, sf.JaccardLoss, sf.TverskyLoss, sf.FocalTverskyLoss)
)
_SENS_SPEC, _LOG_COSH, _DSC, _LOVASZ, _MCC = map(
    _of, (sf.SensitivitySpecificityLoss, sf.LogCoshDiceLoss, sf.SelfAdjustingDiceLoss, sf.LovaszLoss, sf.MCCLoss)
)
_COMBO, _EXP_LOG, _DICE_CE, _DICE_FOCAL, _UNIFIED = map(
    _of, (sf.ComboLoss, sf.ExponentialLogarithmicLoss, sf.DiceCELoss, sf.DiceFocalLoss, sf.UnifiedFocalLoss)
)
_HD_DT, _BOUNDARY, _SHAPE, _DISTANCE_CE, _UNET, _BLOB = map(
    _of,
    (
        sf.HausdorffDTLoss,
        sf.BoundaryLoss,
        sf.ShapeAwareLoss,
        sf.DistanceMapCrossEntropyLoss,
        sf.UNetWeightedCrossEntropyLoss,
        sf.BlobLoss,
    ),
)

_ER, _CV, _WHD = map(_of, (sf.HausdorffERLoss, sf.HausdorffCVLoss, sf.WeightedHausdorffLoss))

_CMSSL = _of(sf.CMSSLLoss)


def _SSIM(case: dict[str, Any]) -> sf.SSIMLoss:
    """The file has the constants C = (k data_range)^2."""
    found = options(case)
    return sf.SSIMLoss(k1=found.pop("C1") ** 0.5, k2=found.pop("C2") ** 0.5, **found)


TABLE: dict[str, Build] = {
    "bce.mean": _CE,
    "bce.sum": _CE,
    "bce.soft_target": _CE,
    "bce.weight_ignore": _CE,
    "wce.beta2": _CE,
    "ce.mean": _CE,
    "ce.class_weight": _CE,
    "ce.class_weight_ignore": _CE,
    "ce.weight_map_ignore": _CE,
    "balanced_ce.fixed": _BALANCED,
    "balanced_ce.auto_sample": _BALANCED,
    "balanced_ce.auto_batch": _BALANCED,
    "focal.default": _FOCAL,
    "focal.gamma_half": _FOCAL,
    "focal.weight_ignore": _FOCAL,
    "focal.soft_target": _FOCAL,
    "focal.softmax": _FOCAL,
    "focal.softmax_weight": _FOCAL,
    "focal.one_vs_rest": _FOCAL,
    "tloss.paper": _T,
    "tloss.reference_code": _T,
    "topk.30": _TOPK,
    "topk.30_ignore": _TOPK,
    "dice.default": _DICE,
    "dice.batch": _DICE,
    "dice.small_eps": _DICE,
    "dice.squared": _DICE,
    "dice.weight_ignore": _DICE,
    "dice.multiclass": _DICE,
    "dice.multiclass_batch": _DICE,
    "dice.multiclass_no_bg": _DICE,
    "dice.multiclass_ignore": _DICE,
    "dice.multiclass_class_weight": _DICE,
    "dice.multiclass_micro": _DICE,
    "dice.smp": _DICE,
    "dice.multiclass_skip": _DICE,
    "dice.multiclass_zero": _DICE,
    "dice.soft_label_product": _DICE,
    "dice.soft_label_l1": _DICE,
    "gdl.multiclass": _GDICE,
    "gdl.multiclass_batch": _GDICE,
    "iou.default": _IOU,
    "iou.multiclass": _IOU,
    "tversky.default": _TVERSKY,
    "tversky.small_eps": _TVERSKY,
    "tversky.multiclass": _TVERSKY,
    "tversky.multiclass_skip": _TVERSKY,
    "focal_tversky.default": _FOCAL_TVERSKY,
    "focal_tversky.multiclass": _FOCAL_TVERSKY,
    "focal_tversky.after_mean": _FOCAL_TVERSKY,
    "sens_spec.ratio": _SENS_SPEC,
    "sens_spec.ratio_multiclass": _SENS_SPEC,
    "sens_spec.brosch": _SENS_SPEC,
    "sens_spec.brosch_multiclass": _SENS_SPEC,
    "log_cosh_dice.default": _LOG_COSH,
    "log_cosh_dice.batch": _LOG_COSH,
    "log_cosh_dice.multiclass": _LOG_COSH,
    "self_adj_dice.pixel": _DSC,
    "self_adj_dice.set": _DSC,
    "self_adj_dice.multiclass": _DSC,
    "self_adj_dice.true_class": _DSC,
    "lovasz_hinge.per_image": _LOVASZ,
    "lovasz_hinge.batch": _LOVASZ,
    "lovasz_hinge.ignore": _LOVASZ,
    "lovasz_softmax.present": _LOVASZ,
    "lovasz_softmax.per_image": _LOVASZ,
    "lovasz_softmax.all": _LOVASZ,
    "lovasz_softmax.ignore": _LOVASZ,
    "mcc.default": _MCC,
    "mcc.batch": _MCC,
    "mcc.multiclass_batch": _MCC,
    "cmssl.default": _CMSSL,
    "cmssl.detached": _CMSSL,
    "cmssl.window5": _CMSSL,
    "cmssl.multiclass": _CMSSL,
    "ssim.valid5": _SSIM,
    "combo.default": _COMBO,
    "combo.asym": _COMBO,
    "combo.multiclass": _COMBO,
    "exp_log.default": _EXP_LOG,
    "exp_log.multiclass": _EXP_LOG,
    "dice_ce.default": _DICE_CE,
    "dice_ce.multiclass": _DICE_CE,
    "dice_focal.default": _DICE_FOCAL,
    "dice_focal.multiclass": _DICE_FOCAL,
    "unified_focal.asym": _UNIFIED,
    "unified_focal.sym": _UNIFIED,
    "unified_focal.multiclass": _UNIFIED,
    "distance_ce.binary": _DISTANCE_CE,
    "distance_ce.multiclass": _DISTANCE_CE,
    "unet_weight.binary": _UNET,
    "hd_dt.default": _HD_DT,
    "hd_dt.multiclass": _HD_DT,
    "hd_dt.one_sided": _HD_DT,
    "hd_dt.log": _HD_DT,
    "hd_dt.spacing": _HD_DT,
    "shape_aware.curve": _SHAPE,
    "shape_aware.pixel": _SHAPE,
    "boundary.default": _BOUNDARY,
    "boundary.multiclass": _BOUNDARY,
    "boundary.symmetric": _BOUNDARY,
    "blob.exclude": _BLOB,
    "blob.zero_logit": _BLOB,
    "hd_er.minmax": _ER,
    "hd_er.double": _ER,
    "hd_er.multiclass": _ER,
    "hd_cv.default": _CV,
    "hd_cv.multiclass": _CV,
    "whd.default": _WHD,
    "whd.alpha9": _WHD,
    "whd.v1": _WHD,
}

EDGES: dict[str, Build] = (
    {"whd.empty": _WHD}
    | {  # constant targets; without "empty" or "full" every pixel is ignored
        f"{stem}{end}": build
        for stem, build in {
            "bce.": _CE,
            "balanced_ce.auto_": _BALANCED,
            "focal.": _FOCAL,
            "dice.": _DICE,
            "dice.squared_": _of(sf.DiceLoss, squared=True),
            "iou.": _IOU,
            "tversky.": _TVERSKY,
            "focal_tversky.": _FOCAL_TVERSKY,
            "log_cosh_dice.": _LOG_COSH,
            "sens_spec.ratio_": _SENS_SPEC,
            "sens_spec.brosch_": _of(sf.SensitivitySpecificityLoss, form="brosch"),
            "lovasz_hinge.": _LOVASZ,
            "mcc.": _MCC,
            "self_adj_dice.pixel_": _DSC,
            "tloss.": _T,
            "cmssl.": _CMSSL,
            "combo.": _COMBO,
            "exp_log.": _EXP_LOG,
            "unified_focal.asym_": _UNIFIED,
            "distance_ce.": _DISTANCE_CE,
            "hd_dt.": _HD_DT,
            "shape_aware.": _SHAPE,
            "boundary.": _BOUNDARY,
            "blob.": _BLOB,
            "hd_er.": _of(sf.HausdorffERLoss, erosions=3),
            "hd_cv.": _of(sf.HausdorffCVLoss, radii=(1, 2)),
        }.items()
        for end in ("empty", "full")
    }
    | {
        f"{stem}.all_ignored": build
        for stem, build in {
            "bce": _CE,
            "ce": _CE,
            "balanced_ce": _BALANCED,
            "focal": _FOCAL,
            "topk_ce": _TOPK,
            "dice": _DICE,
            "iou": _IOU,
            "tversky": _TVERSKY,
            "generalized_dice": _GDICE,
            "log_cosh_dice": _LOG_COSH,
            "hausdorff_dt": _HD_DT,
            "boundary": _BOUNDARY,
            "cmssl": _CMSSL,
            "lovasz_hinge": _LOVASZ,
            "lovasz_softmax": _LOVASZ,
        }.items()
    }
)
