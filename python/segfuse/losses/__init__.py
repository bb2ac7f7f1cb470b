"""Every loss: a formula on what one pass over memory returns."""

from ._base import CompoundLoss, RegionLoss
from .blob import *
from .boundary import *
from .combo import *
from .cross_entropy import *
from .deep_supervision import *
from .dice import *
from .distance_map import *
from .exponential_logarithmic import *
from .focal import *
from .hausdorff import *
from .jaccard import *
from .lovasz import *
from .mcc import *
from .sensitivity_specificity import *
from .shape_aware import *
from .structural_similarity import *
from .t_loss import *
from .tversky import *
from .unified_focal import *
from .weighted_hausdorff import *

# Written out, so that type checkers see it. Tables keep this order.
__all__ = [
    "CompoundLoss",
    "RegionLoss",
    "BalancedCrossEntropyLoss",
    "CrossEntropyLoss",
    "TopKCrossEntropyLoss",
    "FocalLoss",
    "TLoss",
    "DiceLoss",
    "GeneralizedDiceLoss",
    "LogCoshDiceLoss",
    "SelfAdjustingDiceLoss",
    "JaccardLoss",
    "FocalTverskyLoss",
    "TverskyLoss",
    "SensitivitySpecificityLoss",
    "LovaszLoss",
    "HausdorffCVLoss",
    "HausdorffERLoss",
    "WeightedHausdorffLoss",
    "MCCLoss",
    "BlobLoss",
    "BoundaryLoss",
    "HausdorffDTLoss",
    "ShapeAwareLoss",
    "DistanceMapCrossEntropyLoss",
    "UNetWeightedCrossEntropyLoss",
    "CMSSLLoss",
    "SSIMLoss",
    "ComboLoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "ExponentialLogarithmicLoss",
    "UnifiedFocalLoss",
    "DeepSupervisionLoss",
]
