"""Bad input raises the documented error, and its text says what was given, what was expected and which call works."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import segfuse as sf

X1, X3 = torch.randn(2, 1, 4, 5), torch.randn(2, 3, 4, 5)
Y1, Y3 = torch.zeros(2, 1, 4, 5, dtype=torch.long), torch.zeros(2, 4, 5, dtype=torch.long)


def labels(value: float, dtype: torch.dtype = torch.long, shape: tuple[int, ...] = (2, 4, 5)) -> torch.Tensor:
    y = torch.zeros(shape, dtype=dtype)
    y.view(-1)[7] = value
    return y


Case = tuple[Callable[[], Any], type[Exception], tuple[str, ...]]
#: call, exception, and what its text must hold: given, expected, a call that works
CALLS: dict[str, Case] = {
    # shapes
    "wrong image size": (lambda: sf.DiceLoss()(X3, Y3[:, :3]), ValueError, ("(2, 3, 5)", "(2, 4, 5)", "Try:")),
    "wrong batch size": (lambda: sf.DiceLoss()(X3, Y3[:1]), ValueError, ("(1, 4, 5)", "(2, 4, 5)", "Try:")),
    "one-hot with a channel too many": (
        lambda: sf.DiceLoss()(X3, torch.zeros(2, 4, 4, 5)),
        ValueError,
        ("(2, 4, 4, 5)", "(2, 3, 4, 5)", "Try:"),
    ),
    "binary target of another size": (
        lambda: sf.DiceLoss()(X1, torch.zeros(2, 1, 4, 4)),
        ValueError,
        ("(2, 1, 4, 4)", "(2, 1, 4, 5)", "Try:"),
    ),
    "multilabel with class numbers": (
        lambda: sf.DiceLoss(mode="multilabel")(X3, Y3),
        ValueError,
        ("(2, 4, 5)", "(2, 3, 4, 5)", "Try:"),
    ),
    "one-channel multiclass": (
        lambda: sf.CrossEntropyLoss(mode="multiclass")(X1, Y3),
        ValueError,
        ("(2, 1, 4, 5)", "two", "mode='binary'"),
    ),
    "binary with three channels": (
        lambda: sf.DiceLoss(mode="binary")(X3, Y3),
        ValueError,
        ("(2, 3, 4, 5)", "(N, 1, *spatial)", "multiclass"),
    ),
    "no batch axis": (
        lambda: sf.DiceLoss()(torch.randn(5), torch.zeros(5)),
        ValueError,
        ("(5,)", "(N, C, *spatial)", "Try:"),
    ),
    "a number": (
        lambda: sf.DiceLoss()(torch.tensor(1.0), torch.tensor(1.0)),
        ValueError,
        ("()", "(N, C, *spatial)", "Try:"),
    ),
    "no channel": (lambda: sf.DiceLoss()(X3[:, :0], Y3), ValueError, ("(2, 0, 4, 5)", "channel", "Try:")),
    "weight map of another size": (
        lambda: sf.DiceLoss()(X3, Y3, weight_map=torch.ones(2, 4, 4)),
        ValueError,
        ("weight_map", "(2, 4, 4)", "(2, 4, 5)", "Try:"),
    ),
    "weight map without batch axis": (
        lambda: sf.DiceLoss()(X3, Y3, weight_map=torch.ones(4, 5)),
        ValueError,
        ("weight_map", "(4, 5)", "(2, 4, 5)", "Try:"),
    ),
    "mask of another size": (
        lambda: sf.DiceLoss()(X3, Y3, mask=torch.ones(2, 5, 5)),
        ValueError,
        ("mask", "(2, 5, 5)", "(2, 4, 5)", "Try:"),
    ),
    "mask per class of exclusive classes": (
        lambda: sf.DiceLoss()(X3, Y3, mask=torch.ones(2, 3, 4, 5)),
        ValueError,
        ("mask", "(2, 3, 4, 5)", "(2, 4, 5)", "Try:"),
    ),
    # values
    "label 255 in 3 classes": (
        lambda: sf.CrossEntropyLoss()(X3, labels(255)),
        ValueError,
        ("255", "(0, 1, 2)", "0 to 2", "ignore_index=255"),
    ),
    "label -1": (lambda: sf.DiceLoss()(X3, labels(-1, torch.int8)), ValueError, ("-1", "0 to 2", "ignore_index=-1")),
    "label 255 in bytes": (
        lambda: sf.DiceLoss()(X3, labels(255, torch.uint8)),
        ValueError,
        ("255", "0 to 2", "ignore_index=255"),
    ),
    "a number of classes": (lambda: sf.FocalLoss()(X3, labels(3)), ValueError, ("3", "0 to 2", "Try:")),
    "class number 1.5": (lambda: sf.DiceLoss()(X3, labels(1.5, torch.float32)), ValueError, ("1.5", "0 to 2", "Try:")),
    "class number NaN": (
        lambda: sf.DiceLoss()(X3, labels(torch.nan, torch.float32)),
        ValueError,
        ("nan", "0 to 2", "Try:"),
    ),
    "class number inf": (
        lambda: sf.DiceLoss()(X3, labels(torch.inf, torch.float32)),
        ValueError,
        ("inf", "0 to 2", "Try:"),
    ),
    "binary label 2": (lambda: sf.DiceLoss()(X1, labels(2, shape=(2, 1, 4, 5))), ValueError, ("2", "0 or 1", "Try:")),
    "binary label 255": (
        lambda: sf.DiceLoss()(X1, labels(255, torch.uint8, (2, 1, 4, 5))),
        ValueError,
        ("255", "0 or 1", "> 0"),
    ),
    "soft label 1.5": (
        lambda: sf.DiceLoss()(X1, labels(1.5, torch.float32, (2, 1, 4, 5))),
        ValueError,
        ("1.5", "0 to 1", "Try:"),
    ),
    "soft label NaN": (
        lambda: sf.DiceLoss()(X1, labels(torch.nan, torch.float32, (2, 1, 4, 5))),
        ValueError,
        ("nan", "0 to 1", "Try:"),
    ),
    "one-hot of 2": (
        lambda: sf.DiceLoss(mode="multiclass")(X3, labels(2, shape=(2, 3, 4, 5))),
        ValueError,
        ("2", "0 or 1", "Try:"),
    ),
    "no axis of samples": (
        lambda: sf.DiceLoss()(X3[0], Y3[0]),
        ValueError,
        ("(3, 4, 5)", "no axis of samples", "input[None]"),
    ),
    "one-hot with ignore_index 0": (
        lambda: sf.DiceLoss(ignore_index=0)(X3, labels(0, shape=(2, 3, 4, 5))),
        ValueError,
        ("ignore_index=0", "one-hot", "mask="),
    ),
    "masks that overlap": (
        lambda: sf.DiceLoss()(X3, torch.ones(2, 3, 4, 5)),
        ValueError,
        ("mode='auto'", "(2, 3, 4, 5)", "adds up to 3", "Try: mode='multilabel'"),
    ),
    "a mask without its channel": (
        lambda: sf.CrossEntropyLoss()(X1[:, 0], torch.zeros(2, 4, 5, dtype=torch.uint8)),
        ValueError,
        ("mode='auto'", "(2, 4, 5)", "adds up to 0", "mode='binary'"),
    ),
    "soft label above 1 by rounding": (
        lambda: sf.DiceLoss()(X1, labels(1.0000001, torch.float32, (2, 1, 4, 5))),
        ValueError,
        ("1.00000011", "0 to 1", "Try: target.clamp(0, 1)"),
    ),
    "label in the loss map": (
        lambda: sf.CrossEntropyLoss(reduction="none")(X3, labels(255)),
        ValueError,
        ("255", "0 to 2", "ignore_index=255"),
    ),
    "label of the hardest pixels": (
        lambda: sf.TopKCrossEntropyLoss()(X3, labels(255)),
        ValueError,
        ("255", "0 to 2", "ignore_index=255"),
    ),
    "negative weight": (
        lambda: sf.DiceLoss()(X3, Y3, weight_map=labels(-0.5, torch.float32)),
        ValueError,
        ("weight_map", "-0.5", ">= 0", "clamp"),
    ),
    "negative weight of a class": (
        lambda: sf.CrossEntropyLoss()(X3, Y3, weight_map=labels(-0.5, torch.float32, (2, 3, 4, 5))),
        ValueError,
        ("weight_map", "-0.5", ">= 0", "clamp"),
    ),
    "soft target for the Brosch form": (
        lambda: sf.SensitivitySpecificityLoss(form="brosch")(X1, torch.full((2, 1, 4, 5), 0.5)),
        ValueError,
        ("0.5", "0 or 1", "Try:"),
    ),
    "class weights of another length": (
        lambda: sf.DiceLoss(class_weight=[1.0, 2.0])(X3, Y3),
        ValueError,
        ("2", "3 classes", "Try:"),
    ),
    "alphas of another length": (
        lambda: sf.FocalLoss(alpha=[1.0, 2.0])(X3, Y3),
        ValueError,
        ("2", "3 classes", "Try:"),
    ),
    "betas of another length": (
        lambda: sf.CrossEntropyLoss(beta=[1.0, 2.0], mode="multilabel")(X3, torch.zeros_like(X3)),
        ValueError,
        ("2", "3", "Try:"),
    ),
    # dtypes, devices, kinds of tensors
    "integer logits": (lambda: sf.DiceLoss()(Y1, X1), TypeError, ("torch.int64", "float32", "Try:")),
    "boolean logits": (lambda: sf.DiceLoss()(X1 > 0, Y1), TypeError, ("torch.bool", "float32", "Try:")),
    "complex logits": (
        lambda: sf.DiceLoss()(X1.to(torch.complex64), Y1),
        TypeError,
        ("torch.complex64", "float32", "Try:"),
    ),
    "complex target": (
        lambda: sf.DiceLoss()(X1, X1.to(torch.complex64)),
        TypeError,
        ("target", "torch.complex64", "Try:"),
    ),
    "target of another device": (
        lambda: sf.DiceLoss()(X3, Y3.to("meta")),
        ValueError,
        ("target", "meta", "cpu", ".to(input.device)"),
    ),
    "weight map of another device": (
        lambda: sf.DiceLoss()(X3, Y3, weight_map=torch.ones(2, 4, 5, device="meta")),
        ValueError,
        ("weight_map", "meta", "cpu", ".to(input.device)"),
    ),
    "mask of another device": (
        lambda: sf.DiceLoss()(X3, Y3, mask=torch.ones(2, 4, 5, device="meta")),
        ValueError,
        ("mask", "meta", "cpu", ".to(input.device)"),
    ),
    "numpy target": (
        lambda: sf.DiceLoss()(X3, Y3.numpy()),
        TypeError,
        ("target", "ndarray", "Tensor", "torch.as_tensor"),
    ),
    "list of logits": (lambda: sf.DiceLoss()([1.0], Y3), TypeError, ("input", "list", "Tensor", "torch.as_tensor")),
    "no target": (lambda: sf.DiceLoss()(X3, None), TypeError, ("target", "NoneType", "Tensor", "Try:")),
    "sparse target": (lambda: sf.DiceLoss()(X1, X1.to_sparse()), TypeError, ("target", "sparse", "dense", "to_dense")),
    "target with a gradient": (
        lambda: sf.DiceLoss()(X1, torch.rand(2, 1, 4, 5, requires_grad=True)),
        ValueError,
        ("target", "gradient", "detach"),
    ),
    "weight map with a gradient": (
        lambda: sf.DiceLoss()(X3, Y3, weight_map=torch.rand(2, 4, 5, requires_grad=True)),
        ValueError,
        ("weight_map", "gradient", "detach"),
    ),
    # settings that meet a mode they do not fit
    "beta of classes": (
        lambda: sf.CrossEntropyLoss(beta=2.0)(X3, Y3),
        ValueError,
        ("beta=2", "multiclass", "class_weight"),
    ),
    "auto beta of classes": (
        lambda: sf.BalancedCrossEntropyLoss()(X3, Y3),
        ValueError,
        ("'auto'", "binary", "class_weight='balanced'"),
    ),
    # distances
    "four spatial axes": (
        lambda: sf.BoundaryLoss()(torch.zeros(1, 1, 2, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2, 2)),
        ValueError,
        ("spatial_dims must be 1, 2 or 3", "4", "Try:"),
    ),
    "no spatial axis": (
        lambda: sf.HausdorffDTLoss()(torch.zeros(3, 1), torch.zeros(3, 1)),
        ValueError,
        ("spatial_dims must be 1, 2 or 3", "0", "Try:"),
    ),
    "spacing of another length": (
        lambda: sf.HausdorffDTLoss(spacing=(1.0, 1.0, 1.0))(X3, Y3),
        ValueError,
        ("3", "2 spatial axes", "Try:"),
    ),
    "soft target for a distance": (
        lambda: sf.BoundaryLoss()(X1, torch.full((2, 1, 4, 5), 0.25)),
        ValueError,
        ("0.25", "hard", "Try:"),
    ),
    "label 255 of a distance": (
        lambda: sf.DistanceMapCrossEntropyLoss()(X3, labels(255)),
        ValueError,
        ("255", "0 to 2", "ignore_index=255"),
    ),
    "label 255 of a boundary": (
        lambda: sf.BoundaryLoss()(X3, labels(255)),
        ValueError,
        ("255", "0 to 2", "ignore_index=255"),
    ),
    "label 2 of a blob": (
        lambda: sf.BlobLoss()(X1, labels(2, shape=(2, 1, 4, 5))),
        ValueError,
        ("2", "0 or 1", "Try:"),
    ),
    "distance map of another size": (
        lambda: sf.BoundaryLoss()(X1, Y1, distance_map=torch.ones(2, 1, 4, 4)),
        ValueError,
        ("distance_map", "(2, 1, 4, 4)", "(2, 4, 5)", "Try:"),
    ),
    "distance map of another device": (
        lambda: sf.BoundaryLoss()(X1, Y1, distance_map=torch.ones(2, 1, 4, 5, device="meta")),
        ValueError,
        ("distance_map", "meta", "cpu", "Try:"),
    ),
    "distance map with a gradient": (
        lambda: sf.BoundaryLoss()(X1, Y1, distance_map=torch.rand(2, 1, 4, 5, requires_grad=True)),
        ValueError,
        ("distance_map", "gradient", "detach"),
    ),
    "distance map for a loss without distances": (
        lambda: sf.DiceLoss()(X1, Y1, distance_map=torch.ones(2, 1, 4, 5)),
        TypeError,
        ("DiceLoss", "distance_map", "Try:"),
    ),
    "distance map for a sum without distances": (
        lambda: (sf.DiceLoss() + sf.FocalLoss())(X1, Y1, distance_map=torch.ones(2, 1, 4, 5)),
        ValueError,
        ("distance_map", "[]", "Try:"),
    ),
    "a sum with distances but no map": (
        lambda: sf.pixel_stats(X3, Y3, ("distance_pred",)),
        ValueError,
        ("distance_pred", "distance_map", "Try:"),
    ),
    "instances of another size": (
        lambda: sf.UNetWeightedCrossEntropyLoss()(X1, Y1, instances=torch.ones(2, 1, 4, 4)),
        ValueError,
        ("(2, 1, 4, 4)", "(2, 4, 5)", "Try:"),
    ),
    # pixel_stats
    "an unknown sum": (lambda: sf.pixel_stats(X3, Y3, ("tp", "f1")), ValueError, ("f1", "tp", "Try:")),
    "a name instead of names": (lambda: sf.pixel_stats(X3, Y3, "tp"), ValueError, ("'tp'", "sequence", "Try:")),
}

SETTINGS: dict[str, Case] = {
    "reduction": (lambda: sf.DiceLoss(reduction="avg"), ValueError, ("'avg'", "'mean', 'sum', 'none'", "Try:")),
    "mode": (lambda: sf.DiceLoss(mode="multi"), ValueError, ("'multi'", "'multiclass'", "Try:")),
    "empty": (lambda: sf.DiceLoss(empty="ignore"), ValueError, ("'ignore'", "'skip'", "Try:")),
    "average": (lambda: sf.DiceLoss(average="weighted"), ValueError, ("'weighted'", "'macro', 'micro'", "Try:")),
    "soft_label": (lambda: sf.DiceLoss(soft_label=True), ValueError, ("True", "'product', 'l1'", "Try:")),
    "normalize": (lambda: sf.FocalLoss(normalize="mean"), ValueError, ("'mean'", "'valid', 'weight', 'numel'", "Try:")),
    "activation": (lambda: sf.FocalLoss(activation="tanh"), ValueError, ("'tanh'", "'softmax'", "Try:")),
    "weight": (lambda: sf.GeneralizedDiceLoss(weight="1/Y"), ValueError, ("'1/Y'", "'simple'", "Try:")),
    "power": (lambda: sf.FocalTverskyLoss(power="before"), ValueError, ("'before'", "'per_group'", "Try:")),
    "form of sensitivity": (
        lambda: sf.SensitivitySpecificityLoss(form="x"),
        ValueError,
        ("'x'", "'ratio', 'brosch'", "Try:"),
    ),
    "form of self-adjusting": (
        lambda: sf.SelfAdjustingDiceLoss(form="x"),
        ValueError,
        ("'x'", "'pixel', 'set'", "Try:"),
    ),
    "perfect": (lambda: sf.MCCLoss(perfect="one"), ValueError, ("'one'", "'formula', 'zero'", "Try:")),
    "beta_scope": (
        lambda: sf.BalancedCrossEntropyLoss(beta_scope="class"),
        ValueError,
        ("'class'", "'sample', 'batch'", "Try:"),
    ),
    "class_weight word": (
        lambda: sf.CrossEntropyLoss(class_weight="inverse"),
        ValueError,
        ("'inverse'", "'balanced'", "Try:"),
    ),
    "class_weight word elsewhere": (
        lambda: sf.DiceLoss(class_weight="balanced"),
        ValueError,
        ("'balanced'", "class_weight", "Try:"),
    ),
    "class_weight word of focal": (
        lambda: sf.FocalLoss(class_weight="inverse"),
        ValueError,
        ("'inverse'", "class_weight", "Try:"),
    ),
    "negative class weight": (lambda: sf.DiceLoss(class_weight=[1.0, -1.0]), ValueError, ("-1.0", ">= 0", "Try:")),
    "no class weight": (lambda: sf.DiceLoss(class_weight=[]), ValueError, ("()", "one per class", "Try:")),
    "infinite class weight": (lambda: sf.DiceLoss(class_weight=[1.0, torch.inf]), ValueError, ("inf", ">= 0", "Try:")),
    "all class weights 0": (
        lambda: sf.DiceLoss(class_weight=[0.0, 0.0]),
        ValueError,
        ("(0.0, 0.0)", "not all 0", "Try:"),
    ),
    "smooth below 0": (lambda: sf.DiceLoss(smooth=-1.0), ValueError, ("-1.0", ">= 0", "smooth=")),
    "smooth of three": (lambda: sf.DiceLoss(smooth=(1.0, 2.0, 3.0)), ValueError, ("(1.0, 2.0, 3.0)", "pair", "Try:")),
    "smooth of words": (lambda: sf.DiceLoss(smooth="1"), ValueError, ("'1'", ">= 0", "Try:")),
    "two smooths of a pixel form": (
        lambda: sf.SelfAdjustingDiceLoss(smooth=(1.0, 2.0)),
        ValueError,
        ("(1.0, 2.0)", "one smoothing", "Try:"),
    ),
    "gamma below 0": (lambda: sf.FocalLoss(gamma=-1), ValueError, ("gamma", "-1", ">= 0", "Try:")),
    "gamma NaN": (lambda: sf.FocalLoss(gamma=torch.nan), ValueError, ("gamma", "nan", ">= 0", "Try:")),
    "gamma None": (lambda: sf.FocalLoss(gamma=None), ValueError, ("gamma", "None", ">= 0", "Try:")),
    "alpha above 1": (lambda: sf.FocalLoss(alpha=2.0), ValueError, ("alpha", "2.0", "0 to 1", "Try:")),
    "alpha of another word": (lambda: sf.FocalLoss(alpha="none"), ValueError, ("alpha", "'none'", "Try:")),
    "beta above 1": (lambda: sf.BalancedCrossEntropyLoss(beta=2.0), ValueError, ("beta", "2.0", "0 to 1", "Try:")),
    "beta of another word": (lambda: sf.BalancedCrossEntropyLoss(beta="half"), ValueError, ("beta", "'half'", "Try:")),
    "beta below 0": (lambda: sf.CrossEntropyLoss(beta=-1.0), ValueError, ("beta", "-1.0", ">= 0", "Try:")),
    "beta_clip above 0.5": (
        lambda: sf.BalancedCrossEntropyLoss(beta_clip=0.6),
        ValueError,
        ("beta_clip", "0.6", "0.5", "Try:"),
    ),
    "label_smoothing above 1": (
        lambda: sf.CrossEntropyLoss(label_smoothing=1.5),
        ValueError,
        ("1.5", "0 to 1", "Try:"),
    ),
    "k of 0": (lambda: sf.TopKCrossEntropyLoss(k=0), ValueError, ("k", "0", "100", "Try:")),
    "k above 100": (lambda: sf.TopKCrossEntropyLoss(k=101), ValueError, ("k", "101", "100", "Try:")),
    "alpha of Tversky": (lambda: sf.TverskyLoss(alpha=-0.1), ValueError, ("alpha", "-0.1", ">= 0", "Try:")),
    "w of sensitivity": (lambda: sf.SensitivitySpecificityLoss(w=1.5), ValueError, ("w", "1.5", "0 to 1", "Try:")),
    "alpha of Combo": (lambda: sf.ComboLoss(alpha=1.5), ValueError, ("alpha", "1.5", "0 to 1", "Try:")),
    "lambda of DiceCE": (lambda: sf.DiceCELoss(lambda_ce=-1.0), ValueError, ("lambda_ce", "-1.0", ">= 0", "Try:")),
    "delta of unified focal": (lambda: sf.UnifiedFocalLoss(delta=1.2), ValueError, ("delta", "1.2", "0 to 1", "Try:")),
    "ignore_index": (lambda: sf.DiceLoss(ignore_index=None), TypeError, ("None", "int", "ignore_index=-100")),
    "ignore_index of a float": (lambda: sf.DiceLoss(ignore_index=255.0), TypeError, ("255.0", "int", "Try:")),
    "spacing of 0": (lambda: sf.BoundaryLoss(spacing=(1.0, 0.0)), ValueError, ("spacing", "0.0", "> 0", "Try:")),
    "spacing NaN": (lambda: sf.ShapeAwareLoss(spacing=torch.nan), ValueError, ("spacing", "nan", "> 0", "Try:")),
    "alpha of Hausdorff": (lambda: sf.HausdorffDTLoss(alpha=0), ValueError, ("alpha", "0", "Try:")),
    "hard": (lambda: sf.HausdorffDTLoss(hard="soft"), ValueError, ("'soft'", "'threshold', 'argmax'", "Try:")),
    "phi": (lambda: sf.DistanceMapCrossEntropyLoss(phi="norm"), ValueError, ("'norm'", "'normalized'", "Try:")),
    "form of shape-aware": (lambda: sf.ShapeAwareLoss(form="x"), ValueError, ("'x'", "'curve', 'pixel'", "Try:")),
    "sigma of 0": (lambda: sf.UNetWeightedCrossEntropyLoss(sigma=0), ValueError, ("sigma", "0", "Try:")),
    "criterion that is no sum": (
        lambda: sf.BlobLoss(sf.TopKCrossEntropyLoss()),
        TypeError,
        ("TopKCrossEntropyLoss", "sums", "BlobLoss(DiceLoss())"),
    ),
    "criterion that is no mean": (
        lambda: sf.BlobLoss(sf.DiceLoss(reduction="sum")),
        ValueError,
        ("'sum'", "mean", "Try:"),
    ),
    "masking": (lambda: sf.BlobLoss(masking="zero"), ValueError, ("'zero'", "'exclude', 'zero_logit'", "Try:")),
    "none inside a sum": (
        lambda: sf.DiceLoss(reduction="none") + sf.FocalLoss(),
        ValueError,
        ("'none'", "number", "reduction='mean'"),
    ),
    "a term that is no loss": (
        lambda: sf.CompoundLoss([torch.nn.CrossEntropyLoss()]),
        TypeError,
        ("CrossEntropyLoss()", "loss or (weight, loss)", "Try:"),
    ),
    "a weight that is no number": (
        lambda: sf.CompoundLoss([("1", sf.DiceLoss())]),
        TypeError,
        ("'1'", "loss or (weight, loss)", "Try:"),
    ),
    "no term": (lambda: sf.CompoundLoss([]), ValueError, ("at least one", "Try:")),
    "a summand that is no loss": (
        lambda: sf.DiceLoss() + torch.nn.CrossEntropyLoss(),
        TypeError,
        ("CrossEntropyLoss", "segfuse", "loss(input, target) + other(input, target)"),
    ),
    "a summand before a loss": (lambda: 1.0 + sf.DiceLoss(), TypeError, ("float", "segfuse", "Try:")),
    "a subtrahend that is no loss": (lambda: sf.DiceLoss() - 1, TypeError, ("int", "segfuse", "Try:")),
    "a factor that learns": (
        lambda: torch.tensor(0.5, requires_grad=True) * sf.DiceLoss(),
        TypeError,
        ("tensor with a gradient", "number", "factor * loss(input, target)"),
    ),
    "a factor that is a word": (lambda: sf.DiceLoss() * "2", TypeError, ("str", "number", "0.5 * DiceLoss()")),
    "a term that takes the place of a loss": (
        lambda: (sf.DiceLoss() + sf.FocalLoss()).terms.update({"dice": torch.nn.CrossEntropyLoss()}),
        TypeError,
        ("CrossEntropyLoss()", "loss or (weight, loss)", "Try:"),
    ),
    "a factor of no term": (
        lambda: (sf.DiceLoss() + sf.FocalLoss()).weights_by_name.update(dcie=2.0),
        ValueError,
        ("'dcie'", "dice, focal", "loss.terms['dcie']"),
    ),
    "a factor that leaves": (
        lambda: (sf.DiceLoss() + sf.FocalLoss()).weights_by_name.pop("dice"),
        TypeError,
        ("factor", "del loss.terms['dice']"),
    ),
    "a factor of a preset": (
        lambda: sf.DiceCELoss().weights_by_name.update(dice=5.0),
        TypeError,
        ("DiceCELoss", "settings", "loss.lambda_dice"),
    ),
    # keywords of other libraries, and misspelt ones
    "torch's weight": (
        lambda: sf.CrossEntropyLoss(weight=1.0),
        TypeError,
        ("CrossEntropyLoss", "'weight'", "class_weight"),
    ),
    "MONAI's sigmoid": (
        lambda: sf.DiceLoss(sigmoid=True),
        TypeError,
        ("DiceLoss", "'sigmoid'", "mode=", "from_logits"),
    ),
    "MONAI's to_onehot_y": (lambda: sf.DiceLoss(to_onehot_y=True), TypeError, ("'to_onehot_y'", "one-hot")),
    "MONAI's smooth_nr": (lambda: sf.DiceLoss(smooth_nr=1.0), TypeError, ("'smooth_nr'", "smooth=(nr, dr)")),
    "nnU-Net's apply_nonlin": (lambda: sf.DiceLoss(apply_nonlin=None), TypeError, ("'apply_nonlin'", "from_logits")),
    "misspelt": (lambda: sf.FocalTverskyLoss(gama=1.0), TypeError, ("FocalTverskyLoss", "'gama'", "gamma=...")),
    "unknown": (lambda: sf.DiceLoss(qqq=1), TypeError, ("DiceLoss", "'qqq'", "help(segfuse.DiceLoss)")),
    "a formula that cannot be called": (
        lambda: sf.RegionLoss("dice"),
        TypeError,
        ("str", "callable", "RegionLoss(lambda s:"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(backend, name, monkeypatch):
    """On a GPU values are looked at, and found out of range, with SEGFUSE_DEBUG=1 alone."""
    for op in ("pixel_stats", "lovasz_extension") if backend == "cuda" else ():
        monkeypatch.setattr(importlib.import_module(f"segfuse.backends.cuda.{op}"), "DEBUG", True)
    call, kind, parts = CALLS[name]
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind
    missing = [part for part in parts if part not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name):
    make, kind, parts = SETTINGS[name]
    with pytest.raises(kind) as error:
        make()
    assert type(error.value) is kind
    missing = [part for part in parts if part not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


CHANGED = {
    "reduction": (sf.DiceLoss, "reduction", "nope"),
    "empty": (sf.DiceLoss, "empty", "Zero"),
    "gamma": (sf.FocalLoss, "gamma", -5),
    "class_weight": (sf.JaccardLoss, "class_weight", [-1.0, 1.0]),
    "smooth": (sf.DiceLoss, "smooth", (1.0, 2.0, 3.0)),
    "two that belong together": (sf.SelfAdjustingDiceLoss, "smooth", (1.0, 2.0)),
    "of a preset": (sf.DiceCELoss, "lambda_ce", -1.0),
    "window": (sf.SSIMLoss, "padding", "foo"),
    "formula": (lambda: sf.RegionLoss(lambda s: s.tp), "formula", "dice"),
    "weights of outputs": (sf.DeepSupervisionLoss, "weights", "third"),
    "criterion": (sf.BlobLoss, "criterion", sf.LovaszLoss()),
}


@pytest.mark.parametrize("name", CHANGED)
def test_settings_that_change_are_checked(name):
    """With the constructor's own words; the loss stays as it was."""
    make, setting, value = CHANGED[name]
    loss = make()
    before = repr(loss)
    with pytest.raises((ValueError, TypeError), match="Try: ") as error:
        setattr(loss, setting, value)
    assert setting in str(error.value) or (name.startswith("two") and repr(loss) == before)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))) if name != "formula" else ():
        with pytest.raises((ValueError, TypeError), match="Try: "):
            setattr(other, setting, value)


@pytest.mark.parametrize("name", sf.losses.__all__)
def test_a_loss_takes_the_settings_it_has(name):
    if name == "CompoundLoss":
        return
    loss = getattr(sf, name)(*{"RegionLoss": [lambda s: s.tp]}.get(name, []))
    assert loss._settings
    before = repr(loss)
    for setting, argument in type(loss)._settings.items():
        if not isinstance(getattr(loss, setting, None), torch.nn.Parameter):
            holder = loss.held_as.get(argument, argument)
            setattr(loss, setting, getattr(loss, holder))
    assert repr(loss) == before


def test_a_list_is_kept_as_the_constructor_keeps_it():
    weights = [1.0, 2.0, 3.0]
    loss = sf.DiceLoss()
    loss.class_weight = weights
    weights[0] = 50.0
    assert loss.class_weight == (1.0, 2.0, 3.0)
    loss.class_weight = torch.tensor([1.0, 2.0])
    assert loss.class_weight == (1.0, 2.0)


def test_a_constructor_that_does_not_take_its_settings_has_no_say():
    class Mine(sf.losses._base.StatsLoss):
        def __init__(self, power: float, **common: Any) -> None:
            super().__init__(smooth=0.5, **common)
            self.exponent = power

        def formula(self, s: Any) -> Any:
            return (1 - (s.tp + 0.5) / (s.pred + s.true + 0.5)) ** self.exponent

    loss = Mine(2.0)
    loss.reduction, loss.smooth, loss.exponent = "sum", 2.0, 3.0
    assert (loss.reduction, loss.smooth, loss.exponent) == ("sum", (2.0, 2.0), 3.0)


def test_numbers_of_numpy():
    loss = sf.FocalTverskyLoss(alpha=np.float32(0.25), gamma=np.int64(2), smooth=(np.float16(1), 0))
    assert repr(loss) == repr(sf.FocalTverskyLoss(alpha=0.25, gamma=2.0, smooth=(1.0, 0)))
    assert type(loss.alpha) is float
    assert sf.FocalLoss(alpha=np.float32(0.5)).alpha == 0.5
    assert sf.BoundaryLoss(spacing=np.float32(2)).spacing == 2.0
    with pytest.raises(ValueError, match="gamma"):
        sf.FocalLoss(gamma=np.float32("nan"))


@pytest.mark.parametrize("name", sf.losses.__all__)
def test_an_unknown_keyword_names_the_loss_and_the_keyword(name):
    first = {"CompoundLoss": [[sf.DiceLoss()]], "RegionLoss": [lambda s: s.tp]}.get(name, [])
    with pytest.raises(TypeError, match="gama") as error:
        getattr(sf, name)(*first, gama=1.0)
    assert "gama" in str(error.value)


@pytest.mark.parametrize("name", sf.losses.__all__)
def test_settings_are_keywords(name):
    if name not in ("CompoundLoss", "RegionLoss"):
        with pytest.raises(TypeError):
            getattr(sf, name)(0.5)


def test_everything_after_the_target_is_a_keyword():
    with pytest.raises(TypeError):
        sf.DiceLoss()(X3, Y3, torch.ones(2, 4, 5))
    with pytest.raises(TypeError):
        sf.functional.dice_loss(X3, Y3, torch.ones(2, 4, 5))


def test_functions_raise_like_modules():
    with pytest.raises(ValueError, match="'avg'"):
        sf.functional.dice_loss(X3, Y3, reduction="avg")
    with pytest.raises(ValueError, match="255"):
        sf.functional.dice_loss(X3, labels(255))
    with pytest.raises(TypeError, match="gama"):
        sf.functional.focal_loss(X3, Y3, gama=1.0)
    for _ in range(2):  # remembered options may not hide a wrong type
        sf.functional.dice_loss(X3, Y3, smooth=1.0)
        with pytest.raises(ValueError, match="smooth"):
            sf.functional.dice_loss(X3, Y3, smooth=True)


def test_the_same_mistake_twice():
    """Whatever a loss remembers about a call, it checks the next one too."""
    loss = sf.CrossEntropyLoss()
    loss(X3, Y3)
    for _ in range(2):
        with pytest.raises(ValueError, match="255"):
            loss(X3, labels(255))
        with pytest.raises(ValueError, match="255"):
            loss(X3.clone().requires_grad_(), labels(255))
    loss = sf.DiceLoss()
    soft = torch.rand(2, 1, 4, 5)
    loss(X1, soft)
    with pytest.raises(ValueError, match="gradient"):
        loss(X1, soft.requires_grad_())
