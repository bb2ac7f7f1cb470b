"""``monai.losses``: the segmentation losses of MONAI 1.6."""

from __future__ import annotations

from .compound import DiceCELoss, DiceFocalLoss, GeneralizedDiceFocalLoss
from .dice import DiceLoss, GeneralizedDiceLoss, GeneralizedWassersteinDiceLoss, MaskedDiceLoss
from .distance import BoundaryLoss, HausdorffDTLoss, LogHausdorffDTLoss
from .focal import FocalLoss, sigmoid_focal_loss, softmax_focal_loss
from .skeleton import SoftclDiceLoss, SoftDiceclDiceLoss
from .tversky import MCCLoss, TverskyLoss
from .unified_focal import AsymmetricFocalLoss, AsymmetricFocalTverskyLoss, AsymmetricUnifiedFocalLoss
from .windows import LocalNormalizedCrossCorrelationLoss, NACLLoss, SSIMLoss
from .wrappers import DeepSupervisionLoss, MaskedLoss, MultiScaleLoss

__all__ = [
    "AsymmetricFocalLoss",
    "AsymmetricFocalTverskyLoss",
    "AsymmetricUnifiedFocalLoss",
    "BoundaryLoss",
    "DeepSupervisionLoss",
    "Dice",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "GeneralizedDiceFocalLoss",
    "GeneralizedDiceLoss",
    "GeneralizedWassersteinDiceLoss",
    "HausdorffDTLoss",
    "LocalNormalizedCrossCorrelationLoss",
    "LogHausdorffDTLoss",
    "MCCLoss",
    "MaskedDiceLoss",
    "MaskedLoss",
    "MultiScaleLoss",
    "NACLLoss",
    "SSIMLoss",
    "SoftDiceclDiceLoss",
    "SoftclDiceLoss",
    "TverskyLoss",
    "dice_ce",
    "dice_focal",
    "ds_loss",
    "generalized_dice",
    "generalized_dice_focal",
    "generalized_wasserstein_dice",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
]

Dice = DiceLoss
dice_ce = DiceCELoss
dice_focal = DiceFocalLoss
generalized_dice = GeneralizedDiceLoss
generalized_dice_focal = GeneralizedDiceFocalLoss
generalized_wasserstein_dice = GeneralizedWassersteinDiceLoss
ds_loss = DeepSupervisionLoss
