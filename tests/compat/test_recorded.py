"""Values that the libraries gave, for where they are not installed: MONAI 1.6.1, SMP 0.6.0, kornia 0.9.0, torchvision
0.28.0, nnU-Net 2.8.1. Value and length of the gradient, with settings that tell the quirks apart."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch


def logits() -> torch.Tensor:
    i = torch.arange(2 * 3 * 5 * 6, dtype=torch.float64)
    return (2 * torch.sin(1.7 * i + 0.3 * torch.sin(i))).reshape(2, 3, 5, 6)


def labels() -> torch.Tensor:
    i = torch.arange(2 * 5 * 6)
    return ((i * i + i // 7) % 5 % 3).reshape(2, 5, 6)


def with_channel() -> torch.Tensor:
    return labels()[:, None].double()


def ignoring() -> torch.Tensor:
    y = labels()
    y[0, 1] = 255
    return y


def one_channel() -> torch.Tensor:
    return logits()[:, :1]


def mask() -> torch.Tensor:
    return (labels()[:, None] == 1).double()


def binary_labels() -> torch.Tensor:
    return (labels() == 1).long()


def masks() -> torch.Tensor:
    return torch.stack([labels() == c for c in (0, 1, 1)], 1).double()


SOFTMAX = {"softmax": True, "to_onehot_y": True}
NNUNET = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}

#: module, name, options, logits, target, value, length of the gradient
TABLE = [
    ("monai", "DiceLoss", SOFTMAX, "logits", "with_channel", 0.689197056, 0.029858674),
    (
        "monai",
        "DiceLoss",
        {**SOFTMAX, "batch": True, "include_background": False},
        "logits",
        "with_channel",
        0.705842604,
        0.035930050,
    ),
    (
        "monai",
        "DiceLoss",
        {"sigmoid": True, "jaccard": True, "squared_pred": True},
        "logits",
        "masks",
        0.682182480,
        0.016840925,
    ),
    ("monai", "GeneralizedDiceLoss", SOFTMAX, "logits", "with_channel", 0.689201967, 0.031903304),
    (
        "monai",
        "TverskyLoss",
        {**SOFTMAX, "alpha": 0.1, "beta": 0.9},
        "logits",
        "with_channel",
        0.677990037,
        0.031009129,
    ),
    ("monai", "FocalLoss", {"to_onehot_y": True}, "logits", "with_channel", 0.523787200, 0.046848753),
    (
        "monai",
        "FocalLoss",
        {"to_onehot_y": True, "use_softmax": True, "ignore_index": 2},
        "logits",
        "with_channel",
        1.017127991,
        0.155309552,
    ),
    ("monai", "DiceCELoss", {**SOFTMAX, "lambda_ce": 0.3}, "logits", "with_channel", 1.122556684, 0.062635812),
    ("monai", "DiceFocalLoss", {**SOFTMAX, "alpha": 0.3}, "logits", "with_channel", 0.986265950, 0.051262091),
    ("monai", "HausdorffDTLoss", SOFTMAX, "logits", "with_channel", 1.861512589, 0.218942833),
    ("monai", "BoundaryLoss", SOFTMAX, "logits", "with_channel", 0.283793669, 0.014515675),
    ("monai", "MCCLoss", {"sigmoid": True}, "one_channel", "mask", 0.954015377, 0.044681881),
    ("smp", "DiceLoss", {"mode": "multiclass"}, "logits", "labels", 0.690388374, 0.029980233),
    (
        "smp",
        "DiceLoss",
        {"mode": "multiclass", "ignore_index": 255, "log_loss": True},
        "logits",
        "ignoring",
        1.167683220,
        0.103929579,
    ),
    (
        "smp",
        "TverskyLoss",
        {"mode": "multilabel", "alpha": 0.1, "beta": 0.9, "gamma": 0.7},
        "logits",
        "masks",
        0.670183853,
        0.016337516,
    ),
    ("smp", "FocalLoss", {"mode": "multiclass", "alpha": 0.3}, "logits", "labels", 0.297068895, 0.027960842),
    (
        "smp",
        "SoftCrossEntropyLoss",
        {"smooth_factor": 0.1, "ignore_index": 255},
        "logits",
        "ignoring",
        1.286792485,
        0.104338201,
    ),
    ("smp", "SoftBCEWithLogitsLoss", {"smooth_factor": 0.1}, "logits", "masks", 0.994750998, 0.039072848),
    ("kornia", "dice_loss", {}, "logits", "labels", 0.687933946, 0.029870500),
    ("kornia", "dice_loss", {"average": "macro", "ignore_index": 255}, "logits", "ignoring", 0.688536267, 0.031697583),
    ("kornia", "tversky_loss", {"alpha": 0.1, "beta": 0.9}, "logits", "labels", 0.677990744, 0.031009165),
    ("kornia", "focal_loss", {"alpha": 0.3, "reduction": "mean"}, "logits", "labels", 0.156845861, 0.022266022),
    ("kornia", "lovasz_softmax_loss", {}, "logits", "labels", 0.724248092, 0.027664446),
    ("kornia", "lovasz_hinge_loss", {}, "one_channel", "binary_labels", 1.739321663, 0.150534966),
    ("torchvision", "sigmoid_focal_loss", {"reduction": "mean"}, "logits", "masks", 0.326566745, 0.029938696),
    (
        "nnunet",
        "DC_and_CE_loss",
        {"soft_dice_kwargs": NNUNET, "ce_kwargs": {}},
        "logits",
        "with_channel",
        1.150374708,
        0.147276252,
    ),
    (
        "nnunet",
        "DC_and_BCE_loss",
        {"soft_dice_kwargs": NNUNET, "bce_kwargs": {}},
        "logits",
        "masks",
        0.640862167,
        0.058301005,
    ),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_recorded(row):
    module, name, options, x, y, value, length = row
    function = getattr(importlib.import_module(f"segfuse.compat.{module}"), name)
    input, target = globals()[x]().requires_grad_(), globals()[y]()
    loss = function(**options) if inspect.isclass(function) else lambda x, y: function(x, y, **options)
    found = loss(input, target)
    found.backward()
    assert float(found.detach()) == pytest.approx(value, rel=2e-6, abs=1e-7)
    assert float(input.grad.norm()) == pytest.approx(length, rel=2e-5)
